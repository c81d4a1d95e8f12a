"""The verbs of `moe-megatron`, one file each: nothing else has to be written to add one.

The file's name is the verb, the first line of its text the line in `moe-megatron --help`, and its
function `run` gets what was typed behind the verb and returns the exit code. Other distributions
add verbs by an entry point: in their pyproject.toml

    [project.entry-points."moe_megatron.verbs"]
    distill = "my_package.distill"

names the verb and a module like those here. A verb is imported when it is used.
"""
