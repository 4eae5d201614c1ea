"""Every number of the estimates that was measured and not derived; `docs/estimates.md` says how and where."""

GIB, MIB = 1 << 30, 1 << 20

# A CUDA context with the kernels that a training run loads (H100, torch 2.11 with CUDA 13).
CONTEXT = 560 * MIB
# Workspaces of cuBLAS and of other libraries that the allocator hands out, whatever the model.
LIBRARIES = 70 * MIB
# What the allocator holds beyond a step's largest need: tensors of other sizes do not fit without gaps into what
# earlier ones left, and recordings share one pool.
FRAGMENTS = 1.06
# Of a tensor that is loaded: how many copies of the largest fused one exist while its parts are put together.
LOADING = 1.75
# What autograd keeps of a compiled layer, beside the tensors that are listed in `layers`.
COMPILED = 1.0
# Layers whose stored tensors wait on the GPU for their copies to the host, or were fetched ahead.
IN_FLIGHT = 4

# A process on the CPU with torch, transformers, PEFT and bitsandbytes, before a model is loaded.
HOST_BASE = 655 * MIB
# Of what the layers would keep of a step, the memory that it takes: with layers computed again, and with all kept.
HOST_PASSED, HOST_KEPT = 1.0, 2.4
# The demo model's first run converts it in the trainer's process.
DEMO_CONVERSION = 1420 * MIB
