"""Formulas of a data config as programs for the library in C++ (``inputs.cpp``)."""

import ast
from typing import NamedTuple

from jetzoo import UserError

# Of `enum Operation` in inputs.h, in this order.
OPERATIONS = (
    *("constant", "add", "subtract", "multiply", "divide", "negate"),
    *("equal", "not_equal", "less", "less_equal", "hypot", "arctan2", "maximum", "minimum"),
    *("log", "log1p", "exp", "sqrt", "square", "abs", "tanh", "sin", "cos", "sinh"),
)
ARITHMETIC = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide"}
# Of each comparison the operation, and whether its sides are exchanged.
COMPARISONS = {
    ast.Eq: ("equal", False),
    ast.NotEq: ("not_equal", False),
    ast.Lt: ("less", False),
    ast.LtE: ("less_equal", False),
    ast.Gt: ("less", True),
    ast.GtE: ("less_equal", True),
}
# Functions of numpy and how many arguments they take, and those that give a constant.
FUNCTIONS = {
    *((name, 1) for name in OPERATIONS[OPERATIONS.index("log") :]),
    *((name, 2) for name in ("hypot", "arctan2", "maximum", "minimum")),
}
CONSTANTS = {"ones_like": 1.0, "zeros_like": 0.0}


class Instruction(NamedTuple):
    """An operation on the columns ``a`` and ``b``; its result is the next column."""

    operation: str
    a: int = 0
    b: int = 0
    constant: float = 0.0


class Program:
    """Instructions that compute variables from raw columns.

    Columns are numbered: the raw ones first, then one for the result of each instruction.

    Parameters
    ----------
    branches : list of str
        Names of the raw columns.
    new_variables : dict of str to str
        Formulas, see :func:`jetzoo.data_config.dependencies`.

    Attributes
    ----------
    branches : list of str
    instructions : list of Instruction
    """

    def __init__(self, branches, new_variables):
        self.branches = branches
        self.instructions = []
        self._formulas = new_variables
        self._columns = {name: i for i, name in enumerate(branches)}
        self._made = {}
        self._logical = set()  # columns of what is true or false

    def column(self, name):
        """Number of the column of a variable.

        Raises
        ------
        UserError
            If its formula holds something that the library in C++ does not compute.
        """
        if name not in self._columns:
            formula = self._formulas[name]
            try:
                self._columns[name] = self._value(ast.parse(formula.strip(), mode="eval").body)
            except _UnknownError as error:
                raise UserError(
                    f"The library in C++ does not compute the formula {name} = {formula} of the "
                    f"data config: it does not know {error}."
                ) from error
        return self._columns[name]

    def per_particle(self, name):
        """Whether a variable is a number for each particle: it is made of one that is."""
        if name in self.branches:
            return is_per_particle(name)
        names = (x.id for x in ast.walk(ast.parse(self._formulas[name].strip())) if _is_name(x))
        known = self._formulas.keys() | set(self.branches)
        return any(self.per_particle(x) for x in names if x in known)

    def _add(self, instruction, logical=False):
        if instruction not in self._made:
            self.instructions.append(instruction)
            self._made[instruction] = len(self.branches) + len(self.instructions) - 1
        if logical:
            self._logical.add(self._made[instruction])
        return self._made[instruction]

    def _value(self, node):
        """Number of the column that holds an expression."""
        if isinstance(node, ast.Name) and node.id in self._formulas.keys() | set(self.branches):
            return self.column(node.id)
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return self._add(Instruction("constant", constant=float(node.value)))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return self._add(Instruction("negate", self._number(node.operand)))
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            a, b = self._value(node.left), self._value(node.right)
            if {a, b} <= self._logical:  # numpy adds these as it pleases
                raise _UnknownError(f"{ast.unparse(node)} of what is true or false")
            return self._add(Instruction(ARITHMETIC[type(node.op)], a, b))
        if (
            isinstance(node, ast.Compare)
            and len(node.ops) == 1
            and type(node.ops[0]) in COMPARISONS
        ):
            operation, exchanged = COMPARISONS[type(node.ops[0])]
            sides = [self._value(node.left), self._value(node.comparators[0])]
            return self._add(Instruction(operation, *(sides[::-1] if exchanged else sides)), True)
        if isinstance(node, ast.Call) and not node.keywords:
            return self._call(node)
        raise _UnknownError(ast.unparse(node)[:60])

    def _number(self, node):
        column = self._value(node)
        if column in self._logical:
            raise _UnknownError(f"{ast.unparse(node)[:60]} as a number")
        return column

    def _call(self, node):
        function = node.func
        known = isinstance(function, ast.Attribute) and _is_name(function.value)
        package, name = (function.value.id, function.attr) if known else ("", "")
        of_numpy, count = package in ("np", "numpy"), len(node.args)
        if (of_numpy or package in ("ak", "awkward")) and name in CONSTANTS and count == 1:
            self._value(node.args[0])
            return self._add(Instruction("constant", constant=CONSTANTS[name]))
        if of_numpy and (name, count) in FUNCTIONS:
            return self._add(Instruction(name, *map(self._number, node.args)))
        raise _UnknownError(ast.unparse(node)[:60])


class _UnknownError(Exception):
    pass


def _is_name(node):
    return isinstance(node, ast.Name)


def is_per_particle(branch):
    """Whether a raw branch holds a number for each particle: those named jet_... hold one."""
    return not branch.startswith("jet_")
