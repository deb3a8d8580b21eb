r"""Parse formulas in LaTeX or plain text into trees. The parser accepts a text only if the whole text is a formula.

The library math-verify drops letters (`4t` becomes `4`) and calculates text (`2021-03-04` becomes 2014). This parser
refuses a text that is not a formula. Letters keep their case, and a letter is never a unit. A text with digits after
a letter (`C6H12O6`) is not a formula. A tree is a tuple of its kind and its parts. The kinds are num, sym, inf, add,
mul, div, pow, neg, root, fn, fact, abs, floor, ceil and binom.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

from schoolhouse.tasks.answers.spelling import clean
from schoolhouse.tasks.answers.tokens import FUNCTIONS, NotAFormula, tokens_of

Tree = tuple[Any, ...]

MAX_FORMULA_CHARS = 2_000
"""A formula with more characters than this limit is not read."""

MAX_DEPTH = 60
"""A formula with more levels of brackets than this limit is not read."""

_INVERSE: dict[str, str] = {name: f"arc{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc")}
_GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho varrho sigma tau upsilon "
    "phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar nabla partial aleph".split()
)
_ACCENTS = frozenset("vec hat bar tilde dot ddot overline overrightarrow mathbb widehat".split())


@lru_cache(maxsize=8192)
def parse_formula(text: str) -> Tree | None:
    """Return the tree of a formula. Returns None if the text is not a formula, or is a relation or a list."""
    if len(text) > MAX_FORMULA_CHARS:
        return None
    try:
        parser = _Parser(tokens_of(clean(text)))
        tree = parser.sum(0)
        if parser.at != len(parser.tokens):
            raise NotAFormula(parser.peek())
    except (NotAFormula, RecursionError, ValueError, IndexError):
        return None
    return tree


class _Parser:
    """A recursive descent parser that reads a list of tokens. `absolute` is the number of absolute values |...| that
    are still open."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.absolute = tokens, 0, 0

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def take(self, token: str | None = None) -> str:
        found = self.peek()
        if not found or (token is not None and found != token):
            raise NotAFormula(f"{found!r} instead of {token!r}")
        self.at += 1
        return found

    def sum(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise NotAFormula("too deep")
        terms = []
        while True:
            sign = self.take() if self.peek() in ("+", "-") else ""
            while self.peek() in ("+", "-"):
                sign = "-" if (sign == "-") != (self.take() == "-") else "+"
            term = self.product(depth + 1)
            terms.append(negated(term) if sign == "-" else term)
            if self.peek() not in ("+", "-"):
                return terms[0] if len(terms) == 1 else ("add", *terms)

    def product(self, depth: int) -> Tree:
        tree = self.power(depth)
        factors = [tree]
        while True:
            token = self.peek()
            if token in ("*", "\\times", "\\cdot"):
                self.take()
                factors.append(self.signed(depth))
            elif token in ("/", "\\div"):
                self.take()
                tree = factors[0] if len(factors) == 1 else ("mul", *factors)
                factors = [("div", tree, self.signed(depth))]
            elif self.starts_factor(token):
                if token[0].isdigit() or token[0] == ".":
                    raise NotAFormula("a number behind a factor")
                before = factors[-1]
                factor = self.power(depth)
                if before[0] == "num" and len(factors) == 1 and _is_proper(factor) and _is_whole(before):
                    factors = [("num", before[1] + factor[1][1] / factor[2][1])]  # a mixed number
                else:
                    factors.append(factor)
            else:
                return factors[0] if len(factors) == 1 else ("mul", *factors)

    def signed(self, depth: int) -> Tree:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        tree = self.power(depth)
        return negated(tree) if negative else tree

    def starts_factor(self, token: str) -> bool:
        if not token or token in (
            "+",
            "-",
            ")",
            "]",
            "}",
            "\\}",
            ",",
            ";",
            "=",
            "<",
            ">",
            "&",
            ":",
            "^",
            "_",
            "!",
            "'",
        ):
            return False
        if token in ("|", "\\|"):
            return not self.absolute
        return token not in ("\\rfloor", "\\rceil", "\\le", "\\ge", "\\ne", "\\approx", "\\in", "\\cup", "\\rangle")

    def power(self, depth: int) -> Tree:
        tree = self.postfix(self.primary(depth + 1))
        if self.peek() == "^":
            self.take()
            exponent = self.exponent(depth)
            if exponent == ("degree",):
                return ("mul", tree, ("div", ("sym", "\\pi"), ("num", Fraction(180))))
            tree = ("pow", tree, exponent)
            tree = self.postfix(tree)
            if self.peek() == "^":
                raise NotAFormula("two exponents")
        return tree

    def exponent(self, depth: int) -> Tree:
        """Parse the exponent after ^. Without braces, as in `x^10`, the exponent is a whole number."""
        if self.peek() == "\\circ":
            self.take()
            return ("degree",)
        if self.peek()[:1].isdigit():
            return ("num", Fraction(self.take().replace(",", "").rstrip(".")))
        return self.argument(depth + 1)

    def postfix(self, tree: Tree) -> Tree:
        if self.peek() == "!":
            self.take()
            tree = ("fact", tree)
        return tree

    def argument(self, depth: int) -> Tree:
        """Parse the argument of a LaTeX command, which is {...}, one digit or one letter."""
        if depth > MAX_DEPTH:
            raise NotAFormula("too deep")
        if self.peek() == "{":
            self.take()
            if self.peek() == "\\circ" and self.peek(1) == "}":
                self.at += 2
                return ("degree",)
            tree = self.sum(depth + 1)
            self.take("}")
            return tree
        token = self.peek()
        if token in ("+", "-"):
            return self.signed(depth)
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = list(token)
        if token == "(":
            return self.primary(depth)
        return self.symbol(depth) if not self.peek()[0].isdigit() else ("num", Fraction(self.take()))

    def primary(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise NotAFormula("too deep")
        token = self.peek()
        if not token:
            raise NotAFormula("the end")
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            self.take()
            if self.peek() == "_":
                raise NotAFormula("a base")
            return ("num", Fraction(token.replace(",", "").rstrip(".") or "0"))
        for left, right in (("(", ")"), ("[", "]"), ("{", "}")):
            if token == left:
                self.take()
                bars, self.absolute = self.absolute, 0
                tree = self.sum(depth + 1)
                self.absolute = bars
                self.take(right)
                return tree
        if token in ("|", "\\|"):
            self.take()
            self.absolute += 1
            tree = self.sum(depth + 1)
            self.absolute -= 1
            self.take(token)
            return ("abs", tree)
        if token in ("\\lfloor", "\\lceil"):
            self.take()
            tree = self.sum(depth + 1)
            self.take(token.replace("l", "r", 1))
            return ("floor" if token == "\\lfloor" else "ceil", tree)
        return self.symbol(depth)

    def symbol(self, depth: int) -> Tree:
        token = self.take()
        name = token[1:]
        if token == "\\frac":
            return self.fraction(depth)
        if token == "\\binom":
            return ("binom", self.argument(depth + 1), self.argument(depth + 1))
        if token == "\\sqrt":
            index: Tree = ("num", Fraction(2))
            if self.peek() == "[":
                self.take()
                index = self.sum(depth + 1)
                self.take("]")
            return ("root", self.argument(depth + 1), index)
        if token.startswith("\\") and name in FUNCTIONS:
            return self.function(name, depth)
        if token == "\\infty":
            return ("inf",)
        if token.startswith("\\") and name in _ACCENTS:
            argument = "".join(self.group())
            return self.subscripted(f"\\{name}{{{argument}}}")
        if token.startswith("@") or (len(token) == 1 and token.isalpha() and token.isascii()):
            return self.subscripted(token)
        if token.startswith("\\") and name in _GREEK:
            return self.subscripted(token)
        raise NotAFormula(token)

    def group(self) -> list[str]:
        """Return the unparsed tokens of {...}, or one token if no brace follows."""
        if self.peek() != "{":
            return [self.take()]
        self.take()
        tokens: list[str] = []
        depth = 1
        while True:
            token = self.take()
            depth += (token == "{") - (token == "}")
            if not depth:
                return tokens
            tokens.append(token)

    def subscripted(self, name: str) -> Tree:
        if self.peek() == "_":
            self.take()
            if self.peek().isdigit() and len(self.peek()) > 1:
                self.tokens[self.at : self.at + 1] = list(self.peek()) if self.peek(1) != "" else [self.peek()]
            name = f"{name}_{''.join(self.group())}"
        while self.peek() == "'":
            name += self.take()
        return ("sym", name)

    def fraction(self, depth: int) -> Tree:
        start = self.at
        if derivative := self.derivative():
            return ("sym", derivative)
        self.at = start
        return ("div", self.argument(depth + 1), self.argument(depth + 1))

    def derivative(self) -> str:
        r"""Return the name of a derivative such as \frac{dy}{dx}, or "" for any other fraction."""
        if self.peek() != "{":
            return ""
        top = self.group()
        bottom = self.group() if self.peek() == "{" else []
        letter = top[0] if top and top[0] in ("d", "\\partial") else ""
        if letter and len(bottom) > 1 and bottom[0] == letter and "d" not in bottom[2:3] and len(top) < 6:
            return f"{''.join(top)}/{''.join(bottom)}"
        return ""

    def function(self, name: str, depth: int) -> Tree:
        power: Tree | None = None
        base: Tree | None = None
        for _ in range(2):
            if self.peek() == "_" and name in ("log", "max", "min") and base is None:
                self.take()
                base = self.argument(depth + 1)
            elif self.peek() == "^" and power is None:
                self.take()
                power = self.argument(depth + 1)
        if name == "exp":
            tree: Tree = ("pow", ("sym", "e"), self.function_argument(depth))
        elif self.peek() == "(" and name in ("max", "min", "gcd", "lcm"):
            raise NotAFormula(name)
        else:
            if power == ("num", Fraction(-1)) and name in _INVERSE:
                name, power = _INVERSE[name], None
            argument = self.function_argument(depth)
            tree = ("fn", "log", argument, base) if base is not None else ("fn", name, argument)
        return ("pow", tree, power) if power is not None else tree

    def function_argument(self, depth: int) -> Tree:
        r"""Parse the argument of a function. Without brackets, `\sin 2x \cos y` means sin(2x) cos(y)."""
        if self.peek() in ("(", "["):
            return self.power(depth + 1)
        factors = [self.signed(depth + 1)]
        while self.starts_factor(token := self.peek()) and token != "(" and token[1:] not in FUNCTIONS:
            if token[0].isdigit():
                raise NotAFormula("a number behind a factor")
            factors.append(self.power(depth + 1))
        return factors[0] if len(factors) == 1 else ("mul", *factors)


def negated(tree: Tree) -> Tree:
    """Return the tree of the negative of a formula. The negative of a number is again a number."""
    return ("num", -tree[1]) if tree[0] == "num" else ("neg", tree)


def _is_whole(tree: Tree) -> bool:
    return tree[1].denominator == 1


def _is_proper(tree: Tree) -> bool:
    """Return True if a tree is a fraction of whole numbers between 0 and 1, as in the mixed number 1 1/2."""
    if tree[0] != "div" or tree[1][0] != "num" or tree[2][0] != "num":
        return False
    top, bottom = tree[1][1], tree[2][1]
    return top.denominator == bottom.denominator == 1 and 0 < top < bottom


def symbols(tree: Tree) -> frozenset[str]:
    r"""Return the names of the variables in a formula. The constants e, i and \pi are not variables."""
    if tree[0] == "sym":
        return frozenset() if tree[1] in ("e", "i", "\\pi") else frozenset({tree[1]})
    return frozenset().union(*(symbols(part) for part in tree[1:] if isinstance(part, tuple)))


def walk(tree: Tree) -> list[Tree]:
    """Return a tree and all its subtrees."""
    found = [tree]
    for part in tree[1:]:
        if isinstance(part, tuple):
            found += walk(part)
    return found


@lru_cache(maxsize=8192)
def ordered(tree: Tree) -> str:
    """Return a text that is equal for trees that differ only in brackets and in the order of terms and factors."""
    if tree[0] in ("add", "mul"):
        parts: list[str] = []
        for part in tree[1:]:
            parts += [ordered(inner) for inner in part[1:]] if part[0] == tree[0] else [ordered(part)]
        return f"{tree[0]}({','.join(sorted(parts))})"
    return f"{tree[0]}({','.join(ordered(part) if isinstance(part, tuple) else str(part) for part in tree[1:])})"
