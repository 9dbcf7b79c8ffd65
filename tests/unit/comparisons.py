"""What small comparisons on real data share."""

SMALL = [
    *("--num-layers=1", "--hidden-size=32", "--num-attention-heads=2"),
    *("--train-iters=40", "--micro-batch-size=8", "--global-batch-size=8"),
    *("--lr=1e-2", "--min-lr=1e-3", "--lr-warmup-iters=4", "--eval-samples=16"),
]
