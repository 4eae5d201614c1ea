"""Every number of the estimates that was measured and not derived; `docs/estimates.md` says how and where."""

GIB, MIB = 1 << 30, 1 << 20

# A CUDA context with the kernels that a training run loads (H100, torch 2.11 with CUDA 13).
CONTEXT = 835 * MIB
# Workspaces of cuBLAS and of other libraries that the allocator hands out, whatever the model.
LIBRARIES = 70 * MIB
# What the allocator holds beyond a step's largest need: a part of it, as tensors of other sizes do not fit without gaps
# into what earlier ones left and recordings share one pool (or not: GAPS_PLAIN), and what the first kernels left.
GAPS, GAPS_PLAIN, GAPS_LEAST = 0.18, 0.06, 120 * MIB
# Of the second largest micro-batch beside the largest: it is recorded when the optimizer is there.
SECOND = 0.83
# While loading, copies of the largest tensor that exist while its parts are put together (with 4 bits: and packed), and
# what the allocator holds beyond that.
LOADING, LOADING_PLAIN = 1.75, 1.0
LOADING_GAPS, LOADING_PLAIN_GAPS = 1.0, 1.9
# Bytes of a logit: in an evaluation (16 and 32 bits at once), and of a head that is trained.
EVALUATED, TRAINED = 6.4, 10
# What an 8-bit layer needs beside others while it is computed: bytes of a token and of its feed-forward part's width.
EIGHT_BIT = 15.5
# Layers whose stored tensors wait on the GPU for their copies to the host, or were fetched ahead.
IN_FLIGHT = 4

# A process on the CPU with torch, transformers, PEFT and bitsandbytes, before a model is loaded.
HOST_BASE = 655 * MIB
# Of what the layers would keep of a step, the memory that it takes: with layers computed again, and with all kept; and
# what of it is there, and used again, in an evaluation.
HOST_PASSED, HOST_KEPT, HOST_LEFT = 1.0, 2.4, 0.5
# The demo model's first run converts it in the trainer's process.
DEMO_CONVERSION = 1420 * MIB
