# Shared by the three tasks. What depends on the task is set where the task is
# chosen: `default_scope` and the visualizer with the data set, the default hooks
# and the log processor with the schedule (MMEngine does not accept one key in two
# bases). The hooks that are not listed there are MMEngine's defaults.
custom_imports = dict(imports=['mm_efficient'], allow_failed_imports=False)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

log_level = 'INFO'
load_from = None
resume = False
