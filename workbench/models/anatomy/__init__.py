"""What a model is, from its `config.json` alone: no weights, no torch, no network.

`sizes` reads and checks the config, `shapes` lists every weight with its shape, `cache` is the memory of a token,
`compute` the arithmetic of a token, `rope` the position encoding, `fields` what each field means, `bundled` the configs
that come with the workbench, `folder` what lies beside a config, `report` all of it for the page and the command line.
"""
