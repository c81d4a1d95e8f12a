"""The verbs of `moe-megatron`, one file each; adding a file adds a verb.

The name of the file is the verb, the first line of its docstring is the verb's line in
`moe-megatron --help`, and its function `run` receives the words after the verb and returns the exit
code. Other distributions add verbs by an entry point that names the verb and a module like those
here, in their pyproject.toml:

    [project.entry-points."moe_megatron.verbs"]
    distill = "my_package.distill"

A verb's module is imported only when the verb is used.
"""
