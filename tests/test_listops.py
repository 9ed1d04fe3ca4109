"""ListOps as it is generated, against an evaluator of text and a recursive generator."""

import doctest
import itertools
import random
import statistics
import time
from collections import Counter

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks.listops
from tasks.listops import (
    SYMBOLS,
    Listops,
    ListopsConfig,
    decode,
    encode,
    generate,
    levels_for,
    most_frequent,
    root_keys,
)
from tasks.parallel import in_parallel
from tests.learning import learns, small_spec

MEANING = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda arguments: int(statistics.median(arguments)),
    "[SM": lambda arguments: sum(arguments) % 10,
}


@pytest.fixture(scope="module", params=[(16, {"samples": 4000}), (200, {"samples": 1000, "min_len": 90})], ids=str)
def task(request, tmp_path_factory):
    seq_len, options = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        task = Listops(seq_len, ListopsConfig(**options))
        task.prepare()
        yield task


def parse(text):
    """The nested list [operator, argument, …] of an expression without parentheses; a bare digit is itself."""
    stack = [[]]
    for symbol in text.split():
        if symbol == "]":
            done = stack.pop()
            stack[-1].append(done)
        elif symbol in MEANING:
            stack.append([symbol])
        else:
            stack[-1].append(int(symbol))
    ((tree,),) = stack
    return tree


def value(tree):
    return tree if isinstance(tree, int) else MEANING[tree[0]]([value(argument) for argument in tree[1:]])


def nodes(tree, level=1):
    """(level, number of arguments) of each node."""
    yield level, 0 if isinstance(tree, int) else len(tree) - 1
    if not isinstance(tree, int):
        for argument in tree[1:]:
            yield from nodes(argument, level + 1)


def draw_tree(draw, levels, level=1):
    """A tree and its length, drawn whole; the root is an operator."""
    if level > 1 and (level == levels or draw.random() > 0.25):
        return draw.randrange(10), 1
    arguments = [draw_tree(draw, levels, level + 1) for _ in range(draw.randint(2, 10))]
    tree = [draw.choice(list(MEANING)), *(argument for argument, _ in arguments)]
    return tree, 2 + sum(length for _, length in arguments)


def in_parentheses(tree):
    """As Long Range Arena writes it."""
    if isinstance(tree, int):
        return str(tree)
    text = tree[0]
    for argument in tree[1:]:
        text = f"( {text} {in_parentheses(argument)} )"
    return f"( {text} ] )"


def plain(tree):
    return str(tree) if isinstance(tree, int) else " ".join([tree[0], *map(plain, tree[1:]), "]"])


def some_trees(seed, n, *, levels=4, min_len=0, seq_len=60):
    draw = random.Random(seed)
    trees = (draw_tree(draw, levels) for _ in itertools.count())
    return list(itertools.islice((tree for tree, length in trees if min_len < length < seq_len), n))


def test_worked_example():
    assert doctest.testmod(tasks.listops).failed == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), seq_len=st.integers(16, 700), window=st.floats(0.05, 1))
def test_values_and_lengths_match_the_evaluator(seed, seq_len, window):
    min_len = int((1 - window) * (seq_len - 2))
    samples = generate(np.random.default_rng(seed), 200, seq_len=seq_len, min_len=min_len)
    for ids, label in samples:
        assert min_len < len(ids) < seq_len
        tree = parse(decode(ids))
        assert value(tree) == label
        shape = list(nodes(tree))
        assert max(level for level, _ in shape) <= 10
        assert {arity for _, arity in shape} <= {0, *range(2, 11)}


def test_all_splits_hold_what_was_asked_for(task):
    samples = task.config.samples
    wanted = {"train": samples, "validation": samples // 8, "test": samples // 8}
    assert {split: task.size(split) for split in wanted} == wanted
    seen = set()
    for split in wanted:
        for row in task.tables[split]:
            assert task.longer_than < len(row["ids"]) < task.seq_len
            assert value(parse(decode(row["ids"]))) == row["label"]
            seen.add(row["ids"])
    assert len(seen) == sum(wanted.values())


def test_batches_spell_out_the_rows(task):
    batch = task.take("test", np.arange(20))
    for number, (inputs, target) in enumerate(zip(batch.inputs, batch.targets, strict=True)):
        kept = inputs if batch.padding is None else inputs[~batch.padding[number]]
        assert value(parse(" ".join(SYMBOLS[symbol] for symbol in kept))) == target
        assert len(kept) == task.sample_lengths("test")[number]


def test_trees_that_fit_are_distributed_as_if_drawn_whole(monkeypatch):
    monkeypatch.setattr(tasks.listops, "LEVELS", 5)
    window, n = {"min_len": 16, "seq_len": 80}, 3000
    theirs = some_trees(0, n, levels=5, **window)
    samples = itertools.chain.from_iterable(generate(np.random.default_rng(i), 500, **window) for i in range(100))
    ours = [parse(decode(ids)) for ids, _ in itertools.islice(samples, n)]
    assert len(ours) == n

    for what in (
        lambda tree: len(plain(tree).split()),
        lambda tree: len(tree),
        lambda tree: list(MEANING).index(tree[0]),
        lambda tree: max(level for level, _ in nodes(tree)),
        lambda tree: statistics.fmean(level for level, _ in nodes(tree)),
        lambda tree: sum(arity > 0 for _, arity in nodes(tree)),
        lambda tree: next(place for place, argument in enumerate([*tree[1:], []]) if isinstance(argument, list)),
        value,
    ):
        one, other = (np.sort([what(tree) for tree in trees]) for trees in (ours, theirs))
        at = np.union1d(one, other)
        gap = np.searchsorted(one, at, "right") / n - np.searchsorted(other, at, "right") / n
        assert np.abs(gap).max() < 1.95 * np.sqrt(2 / n)  # Kolmogorov-Smirnov, p = 0.001


def test_operators_and_digits_are_uniform(task):
    counts = Counter(b"".join(task.tables["train"]["ids"]))
    digits = [counts[tasks.listops.DIGIT + digit] for digit in range(10)]
    operators = [counts[tasks.listops.OPERATOR + number] for number in range(4)]
    assert 0 not in counts
    assert sum(operators) == counts[tasks.listops.CLOSE]
    for found in (digits, operators):
        assert max(found) / min(found) < 1.2


@pytest.mark.parametrize(("seq_len", "levels"), [(16, 10), (2000, 10), (4000, 12), (8000, 13), (65_536, 19)])
def test_trees_get_deeper_beyond_long_range_arenas_length(seq_len, levels):
    assert levels_for(seq_len) == levels


def test_the_longest_expressions_are_found_as_well():
    (ids, label), *_ = generate(np.random.default_rng(0), 100, seq_len=65_536, min_len=16_384)
    assert 16_384 < len(ids) < 65_536
    assert value(parse(decode(ids))) == label


@given(st.lists(st.sampled_from(SYMBOLS[1:]), min_size=1))
def test_ids_and_text_round_trip(symbols):
    ids = encode(" ".join(symbols))
    assert len(ids) == len(symbols)
    assert set(ids) <= set(range(1, 16))
    assert decode(ids) == " ".join(symbols)


def test_parentheses_are_dropped():
    for tree in some_trees(0, 50):
        assert decode(encode(in_parentheses(tree))) == plain(tree) == decode(encode(plain(tree)))


def test_many_cores_make_what_one_makes(tmp_path, monkeypatch):
    found = []
    for tokens in (0, 10**9):
        monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path / str(tokens)))
        monkeypatch.setattr(tasks.listops, "ONE_CORE_TOKENS", tokens)
        task = Listops(2000, ListopsConfig(samples=1200))  # several chunks
        found.append([[table["ids"][:], table["label"][:]] for table in task.tables.values()])
    assert found[0] == found[1]


def test_streams_and_chunks_differ():
    chunks = [tasks.listops.generate_chunk(2000, 500, stream, number) for stream in (1, 2) for number in (0, 1)]
    assert len({ids for chunk in chunks for ids, _ in chunk}) == sum(map(len, chunks))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "expected listops.samples >= 1, got 0"),
        ({"min_len": -1}, "expected listops.min_len >= 0, got -1"),
        ({"data": "x", "samples": 9}, "listops.data cannot be combined with listops.samples or listops.min_len"),
        ({"data": "x", "min_len": 9}, "listops.data cannot be combined with listops.samples or listops.min_len"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ListopsConfig(**options)


def test_a_range_without_a_length_is_refused():
    with pytest.raises(ValueError, match=r"expected listops.min_len <= 62 at seq_len 64, got 63"):
        Listops(64, ListopsConfig(min_len=63))
    assert all(len(ids) == 63 for ids, _ in generate(np.random.default_rng(0), 5000, seq_len=64, min_len=62))


def test_keys_of_the_root_leave_out_what_is_nested():
    texts = ["[MAX 3 [MIN 9 9 ] 3 0 ]", "[MAX 0 3 [SM 1 [MED 2 2 ] ] ]", "[MAX 4 0 ]", "[MAX [MAX 3 3 ] [SM 3 3 ] ]"]
    texts += ["[SM 3 6 4 [MIN 9 9 ] ]", "[MED 3 3 4 [MIN 9 9 ] 7 ]", "5", "] [MAX 3 ]"]
    nothing, root, made = root_keys([encode(text) for text in texts]).tolist()
    assert nothing == [0] * 8
    assert root == [12, 12, 12, 12, 14, 13, 6, 15]
    assert [key % 11 for key in made] == [3, 3, 4, 10, 3, 3, 10, 10]
    assert [key // 11 for key in made] == root


def test_keys_of_a_cut_row_do_not_touch_the_next():
    cut, whole = encode("[MAX 3 [MIN 9 [SM"), encode("[SM 1 [MIN 9 9 ] 1 ]")
    both = root_keys([cut, whole])
    assert np.array_equal(both, np.concatenate([root_keys([cut]), root_keys([whole])], axis=1))
    assert np.array_equal(root_keys([cut]), root_keys([encode("[MAX 3 ]")]))


def test_most_frequent_falls_back_on_what_was_guessed_before():
    keys, labels = np.array([5, 5, 5, 2]), np.array([1, 3, 3, 7])
    assert most_frequent(keys, labels, np.array([2, 5, 4, 9]), np.array([0, 0, 8, 6])).tolist() == [7, 3, 8, 6]


def test_ladder_of_trivial_predictors(task):
    """Recomputed sample by sample."""

    def made(tree):
        own = [argument for argument in tree[1:] if isinstance(argument, int)]
        return MEANING[tree[0]](own) if own else None

    votes = {}
    keys = [lambda tree: (), lambda tree: tree[0], lambda tree: (tree[0], made(tree))]
    for row in task.tables["train"]:
        tree = parse(decode(row["ids"]))
        for rung, key in enumerate(keys):
            votes.setdefault((rung, key(tree)), Counter())[row["label"]] += 1
    right = np.zeros(3)
    for row in task.tables["test"]:
        tree = parse(decode(row["ids"]))
        guess = None
        for rung, key in enumerate(keys):
            counts = votes.get((rung, key(tree)))
            guess = min(counts, key=lambda label: (-counts[label], label)) if counts else guess
            right[rung] += guess == row["label"]
    scores = task.baselines()
    names = ["majority class", "root operator", "root operator and its digits"]
    assert [scores[name] for name in names] == pytest.approx(right / task.size("test"))


def test_provenance_counts_the_labels(task):
    provenance = task.provenance()
    counts = Counter(task.tables["test"]["label"])
    assert {label: provenance[f"test_label_{label}"] for label in range(10)} == {
        label: counts[label] for label in range(10)
    }
    assert provenance["train_samples"] == task.config.samples


@pytest.mark.long
def test_a_small_model_learns_more_than_the_root_operator():
    options = {"samples": 20_000, "min_len": 4}
    score, _ = learns(small_spec("listops", 32, options, steps=150, batch_size=64))
    assert score > Listops(32, ListopsConfig(**options)).facts["baselines"]["root operator"] + 0.05


def test_work_whose_results_nobody_reads_is_hardly_begun():
    begun = []
    results = in_parallel(abs, (begun.append(job) or job for job in itertools.count()))
    assert list(itertools.islice(results, 3)) == [0, 1, 2]
    time.sleep(0.5)
    assert len(begun) <= 3 + 2 * joblib.cpu_count()
    results.close()
