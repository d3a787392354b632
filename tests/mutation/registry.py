"""Every mutant by its name."""

from mutation.closed_mutants import CLOSED_MUTANTS
from mutation.composition_mutants import COMPOSITION_MUTANTS
from mutation.embedding_mutants import EMBEDDING_MUTANTS
from mutation.estimator_mutants import ESTIMATOR_MUTANTS
from mutation.group_mutants import GROUP_MUTANTS
from mutation.mutants import SET_MUTANTS
from mutation.sensitivity_mutants import SENSITIVITY_MUTANTS
from mutation.smooth_mutants import SMOOTH_MUTANTS
from mutation.span_mutants import SPAN_MUTANTS
from mutation.table_mutants import TABLE_MUTANTS
from mutation.wiring_mutants import WIRING_MUTANTS

FAMILIES = (
    SET_MUTANTS,
    CLOSED_MUTANTS,
    SMOOTH_MUTANTS,
    TABLE_MUTANTS,
    GROUP_MUTANTS,
    ESTIMATOR_MUTANTS,
    WIRING_MUTANTS,
    EMBEDDING_MUTANTS,
    SPAN_MUTANTS,
    SENSITIVITY_MUTANTS,
    COMPOSITION_MUTANTS,
)
MUTANTS = {name: mutant for family in FAMILIES for name, mutant in family.items()}
if len(MUTANTS) != sum(map(len, FAMILIES)):
    raise ValueError("two mutants have one name")
