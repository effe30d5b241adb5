"""Many runs of one recipe: methods, variants, settings and seeds, each method at a learning rate of its own.

`files` is a sweep as data, `grid` the runs it asks for, `running` runs them, `figures` and `tables` tell
what came of it.
"""
