"""Formulas that may be evaluated although a file from elsewhere holds them.

weaver evaluates the formulas of a data config as Python. That is right for a YAML that a user
gives, and wrong for the data config within an int8 file: of such a file only formulas pass that
compute with numbers, names of branches, and the functions listed here.
"""

import ast

from jetzoo import UserError

NUMPY = """
    abs absolute add any all arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin
    around cbrt ceil clip cos cosh deg2rad degrees divide equal exp exp2 expm1 fabs floor
    floor_divide fmax fmin fmod greater greater_equal hypot isclose isfinite isin isinf isnan less
    less_equal log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor max
    maximum mean min minimum mod multiply nan_to_num negative not_equal ones_like positive power
    rad2deg radians reciprocal remainder rint round sign sin sinh sqrt square stack std subtract sum
    tan tanh true_divide trunc var where zeros_like
"""
AWKWARD = """
    all any argmax argmin argsort broadcast_arrays concatenate corr count count_nonzero drop_none
    fill_none firsts flatten full_like is_none isclose local_index max mean min nan_to_num
    nan_to_none num ones_like prod ravel singletons sort std sum to_numpy unflatten
    values_astype var where zeros_like
"""
MATH = "cos cosh exp fabs hypot log log10 log1p log2 sin sinh sqrt tan tanh"
FUNCTIONS = {
    **dict.fromkeys(("np", "numpy"), frozenset(NUMPY.split())),
    **dict.fromkeys(("ak", "awkward"), frozenset(AWKWARD.split())),
    "math": frozenset(MATH.split()),
}
CONSTANTS = {"np": ("pi", "e", "inf", "nan"), "math": ("pi", "e", "inf", "nan")}
KEYWORDS = ("axis", "keepdims", "ascending", "stable", "clip")

OPERATORS = (
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow),
    *(ast.BitAnd, ast.BitOr, ast.BitXor),
)

# Characters of a formula, and the largest exponent: x**9 is one thing, 9**9**9 another.
LONGEST, LARGEST_EXPONENT = 10_000, 16


def check_formula(formula):
    """Raise a :class:`jetzoo.UserError` unless a formula does nothing but compute.

    Parameters
    ----------
    formula : str
        Arithmetic, comparisons and boolean operators on names of branches and numbers, slices, and
        calls such as ``np.log(part_pt)`` of :data:`FUNCTIONS`.
    """
    if not isinstance(formula, str) or len(formula) > LONGEST:
        raise UserError("A formula is a text of at most 10,000 characters.")
    try:
        _value(ast.parse(formula.strip(), mode="eval").body)
    except _ForbiddenError as error:
        raise UserError(
            f"The formula {formula[:80]!r} holds {error}, which is not arithmetic."
        ) from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"The formula {formula[:80]!r} is not an expression of Python.") from error


def check_name(name):
    """Raise a :class:`jetzoo.UserError` unless a name can be that of a branch or a variable."""
    if not isinstance(name, str) or not name.isidentifier() or not _is_variable(name):
        raise UserError(f"{name!r} is not the name of a branch.")


def _is_variable(name):
    return not name.startswith("_") and name not in FUNCTIONS and name != "len"


class _ForbiddenError(Exception):
    pass


def _value(node):
    """Check an expression whose value is an array or a number."""
    if isinstance(node, ast.Name) and _is_variable(node.id):
        return
    if isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        return
    if isinstance(node, ast.UnaryOp):
        _value(node.operand)
    elif isinstance(node, ast.BoolOp):
        _each(_value, node.values)
    elif isinstance(node, ast.Compare):
        _each(_value, (node.left, *node.comparators))
        _forbid_unless(not any(isinstance(x, (ast.In, ast.Is)) for x in node.ops), node)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, OPERATORS):
        if isinstance(node.op, ast.Pow):
            _forbid_unless(_is_small_power(node), node)
        _each(_value, (node.left, node.right))
    elif isinstance(node, ast.Subscript):
        _value(node.value)
        _index(node.slice)
    elif isinstance(node, ast.Call):
        _call(node)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        _forbid_unless(node.attr in CONSTANTS.get(node.value.id, ()), node)
    else:
        raise _ForbiddenError(ast.unparse(node)[:40])


def _is_small_power(node):
    """Whether a power stays a number of 64 bits: of one number, or of arrays, which have these."""
    exponent = node.right.operand if isinstance(node.right, ast.UnaryOp) else node.right
    if not isinstance(exponent, ast.Constant) or type(exponent.value) not in (int, float):
        return False
    variables = (x for x in ast.walk(node.left) if isinstance(x, ast.Name) and _is_variable(x.id))
    base_is_array = next(variables, None) is not None
    return exponent.value <= LARGEST_EXPONENT and (
        base_is_array or isinstance(node.left, ast.Constant)
    )


def _call(node):
    function = node.func
    known = (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.attr in FUNCTIONS.get(function.value.id, ())
    )
    _forbid_unless(known, function)
    _each(_argument, node.args)
    for keyword in node.keywords:
        _forbid_unless(keyword.arg in KEYWORDS, node)
        _argument(keyword.value)


def _argument(node):
    """Check an argument, which may also be a text, such as "float32", None, or a list."""
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, str)):
        return
    if isinstance(node, (ast.List, ast.Tuple)):
        _each(_argument, node.elts)
    else:
        _value(node)


def _index(node):
    if isinstance(node, ast.Tuple):
        _each(_index, node.elts)
    elif isinstance(node, ast.Slice):
        _each(_value, [x for x in (node.lower, node.upper, node.step) if x is not None])
    else:
        _value(node)


def _each(check, nodes):
    for node in nodes:
        check(node)


def _forbid_unless(condition, node):
    if not condition:
        raise _ForbiddenError(ast.unparse(node)[:40])
