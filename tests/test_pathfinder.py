"""Pathfinder, against its geometry computed anew, and against a solver that sees nothing but the picture."""

import doctest
import math
import random
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

import tasks.pathfinder
import tasks.pathx
from compare.runs.data import make_task
from compare.runs.train import Trainer
from tasks.contours import SCALES, draw, paint, sketch
from tasks.pathfinder import Chunk, Pathfinder, PathfinderConfig, find_discs, generate
from tasks.pathx import PathXConfig
from tests.learning import small_spec


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=SCALES)
def scenes(request):
    rng = random.Random(0)
    return [sketch(rng, SCALES[request.param], contour) for contour in (6, 9, 14) for _ in range(8)]


def segment(scene, paddle) -> tuple[np.ndarray, np.ndarray]:
    """Near and far end of a paddle: its length back from a pixel of the circle."""
    y, x, n = paddle
    head = np.array(scene.paddles.heads[n], float)
    tail = head * (1 - scene.paddles.scale.length / np.hypot(*head))
    pivot = np.array([y, x])
    return pivot + tail, pivot + head


def angle_between(one, other) -> float:
    (from_one, to_one), (from_other, to_other) = one, other
    a, b = to_one - from_one, to_other - from_other
    return math.acos(np.clip(a @ b / np.hypot(*a) / np.hypot(*b), -1, 1))


def distance(one, other) -> float:
    steps = np.linspace(0, 1, 21)[:, None]
    a, b = (start + steps * (end - start) for start, end in (one, other))
    return np.hypot(*(a[:, None] - b).transpose(2, 0, 1)).min()


def discs_in(picture, radius) -> list[np.ndarray]:
    """Centres of the places where all of a disc is white."""
    reach = int(radius)
    offsets = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).T
    framed = np.pad(picture, reach)
    white = np.ones(picture.shape, bool)
    for y, x in offsets[np.hypot(*offsets.T) <= radius - 0.71]:
        white &= framed[y + reach :, x + reach :][: len(white), : len(white)] == 255
    return list(np.argwhere(white))


def solve(picture, length, radius) -> int:
    """The label, from the picture: walk from one disc along the curve and see whether the other comes."""
    start, goal = discs_in(picture, radius)
    rows, columns = np.indices(picture.shape)
    covered = {id(disc): np.hypot(rows - disc[0], columns - disc[1]) <= radius + 0.71 for disc in (start, goal)}
    pieces, count = ndimage.label((picture > 60) & ~covered[id(start)] & ~covered[id(goal)], np.ones((3, 3)))
    dashes = []  # (one end, other end, the disc on the other end)
    for piece in range(1, count + 1):
        pixels = np.argwhere(pieces == piece)
        weights = picture[pieces == piece].astype(float)
        centre = weights @ pixels / weights.sum()
        near = [disc for disc in (start, goal) if np.hypot(*(pixels - disc).T).min() < radius + 2.2]
        near = [disc for disc in near if abs(np.hypot(*(pixels - disc).T).max() - length) < 1]
        if near:
            [disc] = near
            outward = (centre - disc) / np.hypot(*(centre - disc))
            dashes.append((disc + length * outward, disc.astype(float), disc))
        else:
            spread = (pixels - centre) * np.sqrt(weights)[:, None]
            axis = np.linalg.eigh(spread.T @ spread)[1][:, 1]
            dashes += [(centre - way * axis * length / 2, centre + way * axis * length / 2, None) for way in (1, -1)]
    (end, begin, _), *_ = [dash for dash in dashes if dash[2] is start]
    seen = [begin]
    for _ in range(14):
        ahead = (end - begin) / np.hypot(*(end - begin))
        new = [dash for dash in dashes if dash[2] is not start and all(np.abs(dash[1] - old).max() > 1 for old in seen)]
        new = [dash for dash in new if all(np.abs(dash[0] - old).max() > 1 for old in seen)]
        new = [dash for dash in new if ahead @ (dash[1] - dash[0]) > 0.5 * length]
        gaps = [np.hypot(*(dash[0] - end - 2.5 * ahead)) for dash in new]
        if not new or min(gaps) > 4.5:
            return 0
        seen += [begin, end]
        begin, end, disc = new[int(np.argmin(gaps))]
        if disc is goal:
            return 1
    return 0


def test_worked_examples():
    assert doctest.testmod(tasks.pathfinder) == (0, 5)
    assert doctest.testmod(tasks.pathx) == (0, 3)


def test_snakes_are_chains_of_paddles_with_gaps(scenes):
    for scene in scenes:
        scale, margin = scene.paddles.scale, scene.paddles.margin
        assert margin in scale.margins
        for snake in (*scene.targets, *scene.distractors):
            for last, paddle in pairwise(snake):
                (tail, head), new = segment(scene, last), segment(scene, paddle)
                pivot = head + margin * (head - tail) / scale.length
                assert np.abs(pivot - paddle[:2]).max() <= 0.5 + 1e-9
                assert margin - 0.51 <= np.hypot(*(new[0] - paddle[:2])) <= margin + 0.51
                assert angle_between((tail, head), new) < math.pi / 2 / scale.continuity


def test_only_neighbours_in_a_snake_come_near(scenes):
    for scene in scenes:
        margin = scene.paddles.margin
        snakes = [*scene.targets, *scene.distractors]
        segments = [(s, n, segment(scene, paddle)) for s, snake in enumerate(snakes) for n, paddle in enumerate(snake)]
        for i, (snake, number, one) in enumerate(segments):
            for other_snake, other_number, other in segments[:i]:
                apart = distance(one, other)
                if snake != other_snake or abs(number - other_number) > 1:
                    assert apart > 1.7 * margin
                else:
                    assert apart > 0.9 * margin


def test_snakes_have_their_lengths(scenes):
    for contour, found in zip((6, 9, 14), np.array_split(np.arange(24), 3), strict=True):
        for scene in (scenes[i] for i in found):
            assert [len(snake) for snake in scene.targets] == [contour, contour]
            assert all(len(snake) == contour // 3 for snake in scene.distractors)
            assert sum(map(len, scene.distractors)) <= scene.paddles.scale.distractors


def test_targets_begin_apart_near_the_centre(scenes):
    for scene in scenes:
        scale = scene.paddles.scale
        first, second = (np.array(snake[0][:2]) for snake in scene.targets)
        assert np.abs(first - (scale.pixels - 1) / 2).max() <= scale.pixels / 2 - 2 * scale.seed_distance
        assert np.hypot(*(first - second)) == pytest.approx(scale.seed_distance, abs=0.75)


def test_the_label_says_whether_the_discs_in_the_picture_are_on_one_target(scenes):
    for scene in scenes:
        ends = [(segment(scene, snake[0])[0], segment(scene, snake[-1])[1]) for snake in scene.targets]
        picture = draw(scene)
        discs = discs_in(picture, scene.paddles.scale.radius)
        assert len(discs) == 2
        owners = []
        for disc in discs:
            apart = [[np.hypot(*(end - disc)) for end in both] for both in ends]
            owners.append(divmod(int(np.argmin(apart)), 2))
            assert np.min(apart) < 0.75
        assert {end for _, end in owners} == {0, 1}
        assert scene.label == (owners[0][0] == owners[1][0])


def test_the_discs_are_found_in_the_pictures(scenes):
    radius = scenes[0].paddles.scale.radius
    found = find_discs(np.array([draw(scene) for scene in scenes]), radius)
    for scene, discs in zip(scenes, found.tolist(), strict=True):
        assert sorted(map(tuple, discs)) == sorted(scene.discs)


def test_a_solver_that_follows_the_dashes_finds_the_label_in_the_picture():
    rng, scale = random.Random(1), SCALES[128 * 128]
    scenes = [sketch(rng, scale, contour) for contour in (6, 9, 14) for _ in range(10)]
    assert 5 < sum(scene.label for scene in scenes) < 25
    assert all(solve(draw(scene), scale.length, scale.radius) == scene.label for scene in scenes)


def test_nothing_is_drawn_on_the_edge_but_discs(scenes):
    for scene in scenes:
        picture = paint(scene.paddles, [*scene.targets, *scene.distractors])
        inside = picture.copy()
        inside[1:-1, 1:-1] = 0
        assert picture.max() > 0
        assert inside.max() == 0


def test_targets_and_distractors_are_equally_bright(scenes):
    def per_paddle(snakes):
        return [paint(scene.paddles, [[paddle]]).sum() for scene in scenes for s in snakes(scene) for paddle in s]

    targets, distractors = per_paddle(lambda scene: scene.targets), per_paddle(lambda scene: scene.distractors)
    scale = scenes[0].paddles.scale
    for found in (targets, distractors):
        assert np.mean(found) / 255 == pytest.approx(scale.length * scale.thickness, rel=0.03)


def test_a_paddle_and_a_disc_have_their_area(scenes):
    paddles = scenes[0].paddles
    scale = paddles.scale
    assert paddles.ink.sum(axis=(1, 2)) / 255 == pytest.approx(scale.length * scale.thickness, rel=0.12)
    assert paddles.disc.sum() / 255 == pytest.approx(math.pi * scale.radius**2, rel=0.02)


def test_neither_light_nor_place_tells_the_label():
    pictures, labels = zip(*generate(Chunk(1024, 6, "train", 0, 3000)), strict=True)
    images = np.array([np.frombuffer(picture, np.uint8) for picture in pictures]).reshape(-1, 32, 32) / 255
    labels = np.array(labels)
    assert labels.mean() == pytest.approx(0.5, abs=0.04)
    light = images.sum(axis=(1, 2))
    difference = light[labels == 1].mean() - light[labels == 0].mean()
    assert abs(difference) < 4 * light.std() * math.sqrt(4 / 3000)
    # Each 8 x 8 block, by the same measure.
    blocks = images.reshape(-1, 4, 8, 4, 8).mean(axis=(2, 4))
    difference = blocks[labels == 1].mean(axis=0) - blocks[labels == 0].mean(axis=0)
    assert (np.abs(difference) < 4.5 * blocks.std(axis=0) * math.sqrt(4 / 3000)).all()


def test_baselines_are_near_chance_but_for_discs_of_short_targets(monkeypatch):
    monkeypatch.setattr(tasks.pathfinder, "in_parallel", map)
    for contour, least, most in ((6, 0.6, 0.8), (14, 0.4, 0.6)):
        task = Pathfinder(1024, PathfinderConfig(samples=2000, contour=contour))
        scores = task.baselines()
        assert set(scores) == {"majority", "logistic regression", "the discs alone"}
        assert least < scores["the discs alone"] < most
        assert 0.4 < scores["logistic regression"] < 0.6


def test_rows_do_not_depend_on_cores_nor_on_how_many_there_are(monkeypatch):
    task = Pathfinder(1024, PathfinderConfig(samples=240, contour=6))
    parallel = [row for split in task.build().values() for row in split.rows]
    monkeypatch.setattr(tasks.pathfinder, "in_parallel", map)
    assert [row for split in task.build().values() for row in split.rows] == parallel
    fewer = Pathfinder(1024, PathfinderConfig(samples=130, contour=6)).build()["train"]
    assert list(fewer.rows) == parallel[-240:][:130]


def test_splits_sizes_and_contours_differ():
    chunks = [(1024, 6, "train"), (1024, 6, "test"), (1024, 9, "train"), (4096, 6, "train")]
    drawn = {generate(Chunk(*chunk, 0, 1))[0][0] for chunk in chunks}
    assert len(drawn | {generate(Chunk(1024, 6, "train", 1, 1))[0][0]}) == 5


def test_a_token_is_a_pixel_and_one(monkeypatch):
    monkeypatch.setattr(tasks.pathfinder, "in_parallel", map)
    task = Pathfinder(1024, PathfinderConfig(samples=64, contour=6))
    batch = task.whole("validation")
    for (pixels, label), inputs, target in zip(
        generate(Chunk(1024, 6, "validation", 0, 8)), batch.inputs, batch.targets, strict=True
    ):
        assert [pixel + 1 for pixel in pixels] == inputs.tolist()
        assert label == target
    assert batch.padding is None
    assert (batch.inputs.min(), batch.inputs.max()) == (1, 256)
    provenance = task.provenance()
    assert [provenance[f"{split}_samples"] for split in ("train", "validation", "test")] == [64, 8, 8]
    assert provenance["validation_connected"] == batch.targets.sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 63}, r"expected pathfinder.samples >= 64, got 63$"),
        ({"contour": 7}, r"expected pathfinder.contour among 6, 9, 14, got 7$"),
        ({"contour": 6, "data": "x"}, r"pathfinder.data cannot be combined with .* or pathfinder.contour: drop them$"),
        ({"samples": 99, "data": "x"}, r"pathfinder.data cannot be combined with pathfinder.samples .*: drop them$"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PathfinderConfig(**options)


def test_pathx_speaks_of_itself():
    with pytest.raises(ValueError, match=r"expected pathx.contour among 6, 9, 14, got 7$"):
        PathXConfig(contour=7)


@pytest.mark.long
def test_a_small_model_fits_a_few_pictures(monkeypatch):
    """To learn what a path is takes far longer than a test; that it can tell these apart shows that they are read."""
    monkeypatch.setattr(tasks.pathfinder, "in_parallel", map)
    spec = small_spec("pathfinder", 1024, {"contour": 6, "samples": 64}, steps=40, batch_size=4, lr=8e-3)
    task = make_task(spec)
    assert set(task.take("train", np.arange(4)).targets.tolist()) == {0, 1}
    monkeypatch.setattr(task, "size", lambda split: 4)
    losses = []
    Trainer(spec, task).train(lambda done, loss: losses.append(loss))
    assert losses[0] > 0.5
    assert losses[-1] < 0.1
