import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CREDIT = ROOT / "service/creditd/credit"
ARXIV = re.compile(r"arXiv:\d{4}\.\d{5}(v\d+)?")


def public_functions():
    """Every public function at the top of a module of `creditd.credit`."""
    return [
        pytest.param(node, ast.get_docstring(node) or "", id=f"{path.stem}.{node.name}")
        for path in sorted(CREDIT.glob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]


def sections(docstring):
    """The sections of a docstring, in their order."""
    return re.findall(r"^(Args|Returns|Raises|Cost|Reference|Differs from the paper):$", docstring, re.MULTILINE)


def of_one_line(node):
    """Whether a function is a formula: one return after its docstring, documented by one sentence."""
    return len(node.body) <= 2 and len((ast.get_docstring(node) or "").splitlines()) == 1


@pytest.mark.parametrize(("node", "docstring"), public_functions())
def test_a_function_says_what_goes_in_and_out_and_what_it_costs(node, docstring):
    """A public function of the library has Args, Returns and Cost; a formula of one line may be its own account."""
    if of_one_line(node):
        return
    needed = {"Cost"}
    if node.args.args or node.args.kwonlyargs:
        needed.add("Args")
    if ast.unparse(node.returns or ast.Constant(None)) != "None":
        needed.add("Returns")
    assert needed <= set(sections(docstring))


@pytest.mark.parametrize(("node", "docstring"), public_functions())
def test_every_argument_is_described(node, docstring):
    """Each argument stands under Args by its name, and no name stands there that is no argument."""
    if "Args" not in sections(docstring):
        return
    text = docstring.split("Args:\n", 1)[1]
    block = text.split("\n\n", 1)[0]
    described = re.findall(r"^    (\w+): ", block, re.MULTILINE)
    assert described == [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]


@pytest.mark.parametrize(("node", "docstring"), public_functions())
def test_sections_have_one_order(node, docstring):
    """Sections come in the order of the template, each once."""
    del node
    order = ["Args", "Returns", "Raises", "Cost", "Reference", "Differs from the paper"]
    found = sections(docstring)
    assert found == [name for name in order if name in found]


@pytest.mark.parametrize(("node", "docstring"), public_functions())
def test_a_function_that_raises_says_so(node, docstring):
    """A function with a `raise` of its own has Raises."""
    raises = any(isinstance(inner, ast.Raise) and inner.exc is not None for inner in ast.walk(node))
    assert not raises or "Raises" in sections(docstring)


@pytest.mark.parametrize(("node", "docstring"), public_functions())
def test_a_paper_is_named_with_its_difference(node, docstring):
    """What names a paper gives its arXiv id under Reference, and says how it differs; neither stands alone."""
    del node
    found = sections(docstring)
    claims = bool(ARXIV.search(docstring)) or "Reference" in found
    assert ("Reference" in found) == claims
    assert ("Differs from the paper" in found) == claims
    if claims:
        reference = docstring.split("Reference:\n", 1)[1].split("\n\n", 1)[0]
        assert ARXIV.search(reference)


def test_the_paper_that_was_read_is_named_with_its_version():
    """ShapE-GRPO is cited as v1 everywhere: a formula may change between two versions of a paper."""
    for path in CREDIT.glob("*.py"):
        cited = re.findall(r"arXiv:2603\.29871(v\d+)?", path.read_text(encoding="utf-8"))
        assert set(cited) <= {"v1"}, path.name


def test_every_module_says_what_it_is():
    """Each module of the library has a docstring, and stands in the map of the package's own."""
    listed = ast.get_docstring(ast.parse((CREDIT / "__init__.py").read_text(encoding="utf-8"))) or ""
    for path in CREDIT.glob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path.name
        if path.stem != "__init__":
            assert re.search(rf"\b{path.stem}\b", listed), path.stem
