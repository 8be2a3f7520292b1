"""Which tests take long: what goes first, and what only `scripts/test.sh --all` runs.

Of what is slow, whole runs in processes of their own and further methods, devices or
precisions of a test, a quicker case stays where there is one: that a resumed run gives
the same bits, for one objective of three.
"""

# Files that take longest go first, so that none is left to one process at the end.
LONGEST = (
    "parallel/test_two_processes.py",
    "test_main_job.py",
    "sampling/test_masked_diffusion.py",
    "faults/test_stopping_phases.py",
    "objectives/test_every_objective.py",
    "test_milestones.py",
    "test_methods.py",
    "parallel/test_elastic.py",
    "test_exported.py",
    "faults/test_fuzzing.py",
)

# Regular expressions, looked for in "folder/test_file.py::test_name[case]". Each has to
# fit a test, see `conftest.pytest_collection_modifyitems`.
SLOW = (
    r"^data/preparation/test_interruptions\.py::.*twenty_times",
    r"^data/test_bad_corpora\.py::.*longer_than_memory",
    r"^data/test_conservation\.py::.*tokens_in_are_tokens_out",
    r"^data/test_every_format\.py::.*(int64-70000|32_bits\[uint32)",
    r"^evaluate/test_monte_carlo\.py::.*spread_over_seeds.*\[16",
    r"^evaluate/test_probes\.py::.*(mesh_of|alone|not_matter).*\[(both|told)",
    r"^faults/test_fuzzing\.py::.*any_bytes_end_in",
    r"^faults/test_kills\.py::.*killed_in_a_save",
    r"^faults/test_memory_advice\.py::.*(advice_is|largest_microbatch|other_errors)",
    r"^faults/test_numbers\.py::.*(8 devices|for_the_schedule\[masked|no_good_step)",
    r"^faults/test_numbers_of_a_run\.py::.*(stays_bad|bad_batch)",
    r"^faults/test_security\.py::.*no_secret_is_written",
    r"^faults/test_stopping_phases\.py::.*(command_line|deadline|clock)",
    r"^models/test_attention_tpu\.py::.*every_mesh",
    r"^models/test_build\.py::.*stay_at_zero",
    r"^models/test_documents\.py::.*(alone\[unrolled-dit|to_their_documents\[True)",
    r"^models/test_stack\.py::.*compiler_plans_less",
    r"^models/test_stack\.py::.*unrolled_layers_agree\[Backbone\.TRANSFORMER",
    r"^modes/test_generation\.py::.*terminal_shows",
    r"^modes/test_planning\.py::.*too_large_is_refused",
    r"^objectives/test_documents\.py::.*after_any_other\[(both ways|dit)",
    r"^objectives/test_every_objective\.py::.*the_reported_bound",
    r"^parallel/test_collectives\.py::.*(once_a_step|gathered_for_use)",
    r"^parallel/test_collectives\.py::.*sent_crosswise",
    r"^parallel/test_dead_peers\.py::.*end_in_time",
    r"^parallel/test_devices\.py::.*(stay_whole|really_split)",
    r"^parallel/test_elastic\.py::.*(same_losses|same_bits)",
    r"^parallel/test_two_processes\.py::",
    r"^sampling/test_denoising\.py::.*neighbours_change_no_text",
    r"^sampling/test_denoising\.py::.*no_finished_text_at_work",
    r"^sampling/test_left_to_right\.py::.*(whatever_is_written|loop_without_a_cache)",
    r"^sampling/test_masked_diffusion\.py::.*(has_ended|entropy_of|guidance|cached_rule)",
    r"^sampling/test_masked_diffusion\.py::.*nor_on_chunks\[(?!ancestral|conf|cap)",
    r"^sampling/test_prompts\.py::.*(draws_go|longer_than|after_a_slide|gaps_of)",
    r"^sampling/test_remasking\.py::.*rate_of_masks\[(?!Remasking\.CAP)",
    r"^sampling/test_reveal_laws\.py::.*(sedd_states|d3pm_has_its_law|by_confidence)",
    r"^sampling/test_reveal_laws\.py::.*(surest.*\[[129]|law\[Ancestral.*(1|2),)",
    r"^sampling/test_reveal_laws\.py::.*remasking_has_its_law\[.*(CAP-geo|RESC|LOOP)",
    r"^sampling/test_uniform_diffusion\.py::.*each_by_itself",
    r"^sampling/test_uniform_diffusion\.py::.*law_of_their.*(2-1\.0|4-)",
    r"^test_bad_input\.py::.*(full_for_the_log|half_way)",
    r"^test_exported\.py::",
    r"^test_main_job\.py::.*(command_stops|text_trains\[nano\])",
    r"^test_main_job\.py::.*\[(uniform|diffusion)\]",
    r"^test_methods\.py::.*(figure_is_worth|sampler_writes|reads_what)",
    r"^test_milestones\.py::.*(interruptions_change|began_at_a_step|longer_budget)",
    r"^test_milestones\.py::.*with_the_weights_of_a_milestone",
    r"^train/test_documents\.py::.*mask_reaches_the_step",
    r"^train/test_documents\.py::.*neither_devices_nor",
    r"^train/test_float16\.py::.*(float32|recovers|comes_back)",
    r"^train/test_offload\.py::.*change_no_bit",
    r"^train/test_step\.py::.*(microbatches_change.*\[masked|dropout_is)",
)
