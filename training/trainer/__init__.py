r"""What `train_vlb_ddpm.py` is made of, lowest first; each file imports only those above it.

- `config_file`: YAML, read with a limit
- `arguments`: the flags
- `crops`: images of many sizes brought to one
- `data`: which images a step sees, and the slice that is kept out
- `augment`: images moved, mirrored and turned
- `pretrained`: the network that a run starts from, and its noise process
- `network`: the one file that knows what a `UNet2DModel` is
- `objective`: the scheduler, and the loss of an image
- `checkpoints`: what a run goes on from
- `metrics`: what a run says of itself
- `validation`: scores and samples on the way
- `hub`: where the result is pushed to
- `trainer`: the run, one update after another
"""
