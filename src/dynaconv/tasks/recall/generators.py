"""Sequences of keys and values, in which some keys come again: what was the value?

Each generator gives inputs [N, T] and labels [N, T], int64: the token that follows where it is asked for, or -100.

Dims: N sequences, T tokens, P pairs, V vocabulary.
"""

from itertools import permutations

import numpy as np

from ...data.batching import NO_LABEL

Sequences = tuple[np.ndarray, np.ndarray]


def mqar(
    count: int, rng: np.random.Generator, *, length: int = 64, pairs: int = 4, vocab_size: int = 8192,
    power: float = 0.01, random_non_queries: bool = True,
) -> Sequences:  # fmt: skip
    """Multi-query associative recall (Arora et al., Zoology, ICLR 2024).

    A sequence is P pairs `key value`, then every key once more, at even distances d with a probability proportional to
    power * d^(power - 1); there its value is asked for.

    Args:
        count: N.
        rng: of all choices.
        length: T, at least 4 P and even.
        pairs: P.
        vocab_size: V; keys are of 1..V/2-1, values of V/2..V-1, neither twice in a sequence.
        power: of the distances; 1: all are as likely.
        random_non_queries: what is neither pair nor key is any token, or else token 0.

    Raises:
        ValueError: sizes that do not fit.
    """
    if 4 * pairs > length or length % 2:
        raise ValueError(f"length must be even and at least 4 x pairs = {4 * pairs}; got {length}")
    half = vocab_size // 2
    keys, values = _distinct(rng, count, 1, half, pairs), _distinct(rng, count, half, vocab_size, pairs)
    context = np.stack([keys, values], axis=2).reshape(count, 2 * pairs)
    slots = _slots(rng, count, (length - 2 * pairs) // 2, pairs, power)
    return _ask(rng, context, [keys], values, 2 * slots, length, vocab_size if random_non_queries else None)


def compositional(
    count: int, rng: np.random.Generator, *, length: int = 64, pairs: int = 4, vocab_size: int = 150,
    power: float = 0.01, random_non_queries: bool = True,
) -> Sequences:  # fmt: skip
    """Compositional multi-query associative recall (Zoology): keys of two tokens, neither of which decides the value.

    The keys are all combinations of sqrt(P) first and sqrt(P) second tokens. Arguments as of :func:`mqar`.

    Args:
        count: N.
        rng: of all choices.
        length: T, at least 6 P.
        pairs: P, a square.
        vocab_size: V; first tokens are of the first third without 0, second ones of the second, values of the last.
        power: of the distances.
        random_non_queries: see there.

    Raises:
        ValueError: sizes that do not fit.
    """
    side = round(pairs**0.5)
    if side * side != pairs:
        raise ValueError(f"pairs must be a square, such as 4, 9 or 16; got {pairs}")
    if 6 * pairs > length:
        raise ValueError(f"length must be at least 6 x pairs = {6 * pairs}; got {length}")
    third = vocab_size // 3
    grid = np.stack(np.divmod(np.arange(pairs), side))[:, rng.permuted(np.tile(np.arange(pairs), (count, 1)), axis=1)]
    firsts = np.take_along_axis(_distinct(rng, count, 1, third, side), grid[0], axis=1)
    seconds = np.take_along_axis(_distinct(rng, count, third, 2 * third, side), grid[1], axis=1)
    values = _distinct(rng, count, 2 * third, vocab_size, pairs)
    context = np.stack([firsts, seconds, values], axis=2).reshape(count, 3 * pairs)
    slots = _slots(rng, count, (length - 3 * pairs) // 3, pairs, power)
    return _ask(rng, context, [firsts, seconds], values, 3 * slots, length, vocab_size if random_non_queries else None)


def variable_key(
    count: int, rng: np.random.Generator, *, classes: int = 3, class_size: int = 6, values: int = 24, pairs: int = 24
) -> Sequences:
    """Multi-query associative recall with keys of variable length, after the task that the 2026 paper describes.

    Key tokens come in n classes of C tokens. A key of length L, uniform in 1..n, is L - 1 tokens of any class and one
    of class L. How far to look back is known from the current token alone, so that one layer with filters that depend
    on the token can compose every key exactly, and one with fixed filters cannot. A sequence is all pairs `key value`,
    then all of them again in random order; there the value is asked for.

    Args:
        count: N.
        rng: of all choices.
        classes: n.
        class_size: C; key tokens are 1..nC, class L is (L-1)C+1..LC.
        values: tokens behind those, drawn with replacement.
        pairs: P; keys are distinct within a sequence.

    Returns:
        T = 2 P (n + 1); sequences are padded by token 0 behind their last token.

    Raises:
        ValueError: too few keys.
    """
    known = class_size * classes  # of length 1 there are C, of length 2 nC^2, ...
    there = sum(class_size * known ** (length - 1) for length in range(1, classes + 1))
    if there < 2 * pairs:
        raise ValueError(f"{classes} classes of {class_size} tokens make {there} keys, too few for {pairs} pairs")
    inputs = np.zeros((count, 2 * pairs * (classes + 1)), np.int64)
    labels = np.full_like(inputs, NO_LABEL)
    for row, asked in zip(inputs, labels, strict=True):
        keys: dict[tuple[int, ...], int] = {}
        while len(keys) < pairs:
            length = int(rng.integers(1, classes + 1))
            last = 1 + (length - 1) * class_size + int(rng.integers(class_size))
            key = (*rng.integers(1, known + 1, length - 1).tolist(), last)
            keys.setdefault(key, known + 1 + int(rng.integers(values)))
        at, chosen = 0, list(keys)
        for again, order in enumerate((range(pairs), rng.permutation(pairs))):
            for i in order:
                key = chosen[i]
                row[at : at + len(key)] = key
                at += len(key)
                row[at] = keys[key]
                if again:
                    asked[at - 1] = keys[key]
                at += 1
    return inputs, labels


def fuzzy(
    count: int, rng: np.random.Generator, *, length: int = 128, vocab_size: int = 16, key_size: int = 3,
    value_size: int = 3, training: bool = True,
) -> Sequences:  # fmt: skip
    """Fuzzy in-context recall (MAD, Poli et al. 2024): keys and values of one or several adjacent tokens.

    Keys are ordered choices of 1..key_size tokens of the first half, values of the second. Keys are drawn again and
    again, each with the value that it had before; the last one is sure to have been seen. Sequences are padded by token
    V - 1 on the left.

    Args:
        count: N.
        rng: of all choices.
        length: T.
        vocab_size: V.
        key_size: tokens of a key at most; in test sequences all keys have so many.
        value_size: tokens of a value at most.
        training: every next token is a label. Otherwise those of values whose key has been seen.

    Raises:
        ValueError: a length that has no room for two pairs.
    """
    if length < 4 * (key_size + value_size):
        raise ValueError(f"length must be at least {4 * (key_size + value_size)}; got {length}")
    pad, half = vocab_size - 1, (vocab_size - 1) // 2
    keys = {n: list(permutations(range(half), n)) for n in range(1 if training else key_size, key_size + 1)}
    values = {n: list(permutations(range(half, pad), n)) for n in range(1, value_size + 1)}
    inputs = np.full((count, length + 1), pad, np.int64)
    labels = np.full_like(inputs, NO_LABEL)
    for row, asked in zip(inputs, labels, strict=True):
        probe, answer = _draw(rng, keys), _draw(rng, values)
        room = length - len(probe) - len(answer) - key_size - value_size
        probe_at = int(rng.integers(room - key_size - value_size))
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        tokens: list[int] = []
        targets: list[int] = []
        while len(tokens) < room:
            key = probe if probe not in known and len(tokens) >= probe_at else _draw(rng, keys)
            seen = key in known
            value = known.setdefault(key, answer if key == probe else _draw(rng, values))
            tokens += key + value
            targets += [NO_LABEL] * len(key) + (list(value) if seen else [NO_LABEL] * len(value))
        tokens += probe + answer
        targets += [NO_LABEL] * len(probe) + list(answer)
        row[-len(tokens) :], asked[-len(tokens) :] = tokens, targets
    return inputs[:, :-1], (inputs if training else labels)[:, 1:]


def _distinct(rng: np.random.Generator, count: int, begin: int, end: int, size: int) -> np.ndarray:
    """[count, size] numbers of begin..end-1, none twice in a row."""
    if end - begin < size:
        raise ValueError(f"vocab_size is too small for {size} different tokens of {begin}..{end - 1}")
    return begin + np.stack([rng.choice(end - begin, size, replace=False) for _ in range(count)])


def _slots(rng: np.random.Generator, count: int, space: int, size: int, power: float) -> np.ndarray:
    """[count, size] numbers of 0..space-1, none twice in a row, d with a weight of (d + 1)^(power - 1)."""
    weights = np.arange(1, space + 1, dtype=float) ** (power - 1)
    # Draws without replacement are those of the largest perturbed logarithms (Gumbel).
    return np.argsort(-(np.log(weights) + rng.gumbel(size=(count, space))), axis=1)[:, :size]


def _ask(
    rng: np.random.Generator, context: np.ndarray, keys: list[np.ndarray], values: np.ndarray, places: np.ndarray,
    length: int, vocab_size: int | None,
) -> Sequences:  # fmt: skip
    """Put the tokens of keys at places behind the context, and ask for values at the last of each."""
    count, begin = context.shape
    inputs = np.zeros((count, length), np.int64)
    labels = np.full_like(inputs, NO_LABEL)
    inputs[:, :begin] = context
    for i, tokens in enumerate(keys):
        np.put_along_axis(inputs, begin + places + i, tokens, axis=1)
    np.put_along_axis(labels, begin + places + len(keys) - 1, values, axis=1)
    if vocab_size is not None:
        inputs = np.where(inputs == 0, rng.integers(vocab_size, size=inputs.shape), inputs)
    return inputs, labels


def _draw(rng: np.random.Generator, motifs: dict[int, list[tuple[int, ...]]]) -> tuple[int, ...]:
    """A size, then one of the motifs of that size."""
    size, place = rng.random(2)
    chosen = motifs[[*motifs][int(size * len(motifs))]]
    return chosen[int(place * len(chosen))]
