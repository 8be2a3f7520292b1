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
    r"^evaluate/test_monte_carlo\.py::.*spread_over_seeds.*\[16",
    r"^evaluate/test_probes\.py::.*mesh_of_devices.*\[(both ways|told the time)",
    r"^evaluate/zero_shot/test_scoring\.py::.*batches_and_devices.*(elbo|chain)",
    r"^faults/test_fuzzing\.py::.*any_bytes_end_in",
    r"^faults/test_kills\.py::.*killed_in_a_save",
    r"^faults/test_memory_advice\.py::.*(advice_is|largest_microbatch|other_errors)",
    r"^faults/test_numbers\.py::.*8 devices",
    r"^faults/test_numbers\.py::.*for_the_schedule\[masked",
    r"^faults/test_numbers_of_a_run\.py::.*(stays_bad|bad_batch)",
    r"^faults/test_stopping_phases\.py::.*command_line",
    r"^faults/test_stopping_phases\.py::.*not\[(?!preparing|saving|waiting)",
    r"^models/test_attention_tpu\.py::.*every_mesh",
    r"^models/test_documents\.py::.*is_what_it_is_alone\[scanned-(?!causal)",
    r"^models/test_stack\.py::.*unrolled_layers_agree\[Backbone\.TRANSFORMER",
    r"^modes/test_planning\.py::.*too_large_is_refused",
    r"^objectives/test_documents\.py::.*costs_the_sum.*\[chunked-",
    r"^objectives/test_enumeration\.py::.*in_discrete_time.*\[cosine",
    r"^parallel/test_collectives\.py::.*(once_a_step\[2|sent_crosswise)",
    r"^parallel/test_dead_peers\.py::.*end_in_time",
    r"^parallel/test_devices\.py::.*(train_as_one\[masked|stay_whole)",
    r"^parallel/test_elastic\.py::.*(same_losses|same_bits\[.*mesh1)",
    r"^parallel/test_two_processes\.py::",
    r"^sampling/test_denoising\.py::.*neighbours_change_no_text",
    r"^sampling/test_left_to_right\.py::.*whatever_is_written_beside",
    r"^sampling/test_masked_diffusion\.py::.*(has_ended_costs|entropy_of_samples)",
    r"^sampling/test_prompts\.py::.*(draws_go_on|longer_than_the_context)",
    r"^sampling/test_remasking\.py::.*rate_of_masks\[(?!Remasking\.CAP)",
    r"^sampling/test_uniform_diffusion\.py::.*law_of_their.*(2-1\.0|4-)",
    r"^sampling/test_uniform_diffusion\.py::.*each_by_itself",
    r"^test_bad_input\.py::.*full_for_the_log",
    r"^test_exported\.py::.*official_rules",
    r"^test_exported\.py::.*(imported_model_is_trained_on|items).*\[diffusion",
    r"^test_main_job\.py::.*\[(uniform|diffusion)\]",
    r"^test_main_job\.py::.*(command_stops|text_trains\[nano\])",
    r"^test_methods\.py::.*figure_is_worth\[(?!Parameterization\.SUBS)",
    r"^test_methods\.py::.*sampler_writes\[(?!autoregressive)",
    r"^test_milestones\.py::.*(interruptions_change|began_at_a_step|longer_budget)",
    r"^train/test_documents\.py::.*neither_devices_nor",
    r"^train/test_float16\.py::.*(\[masked_diffusion|until_the_run_recovers)",
    r"^train/test_offload\.py::.*change_no_bit",
    r"^train/test_step\.py::.*microbatches_change.*\[masked",
)
