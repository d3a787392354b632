"""What `import verl` loads in every process (entry point `verl.plugins`): the names of creditd's estimators.

Nothing of the client is imported here. verl hides what goes wrong in a plugin; the sampler registers the same names
again, and says what is wrong.
"""

from creditd.adapters.verl_estimators import register

register()
