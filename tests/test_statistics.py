"""Intervals against closed forms, an independent bootstrap, and simulated coverage."""

import math

import numpy as np
import pytest

from frl_repro.results.tables.statistics import (
    bootstrap,
    normalised_deviation,
    of_share,
    over_seeds,
    resampled_class_errors,
    rho,
)


def change_of_worst(errors):
    return errors[..., 1, :].max(-1) - errors[..., 0, :].max(-1)


def test_mean_over_seeds_has_students_interval():
    interval = over_seeds([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # quantile of t with 2 degrees of freedom, deviation 1
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-5)
    assert not interval.excludes(0)
    assert over_seeds([1.0, 1.1, 1.2]).excludes(0.5)
    assert over_seeds([1.0, 1.1, 1.2]).excludes(2)


def test_one_seed_says_nothing_about_spread():
    interval = over_seeds([0.3])
    assert interval.estimate == 0.3
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert not interval.excludes(5)
    with pytest.raises(ValueError, match="at least one value"):
        over_seeds([])


def test_share_has_wilsons_interval():
    interval = of_share(250, 1000)
    z = 1.959964
    middle, half = 0.25 + z**2 / 2000, z * math.sqrt(0.25 * 0.75 / 1000 + z**2 / 4e6)
    bounds = ((middle - half) / (1 + z**2 / 1000), (middle + half) / (1 + z**2 / 1000))
    assert interval.estimate == 0.25
    assert (interval.low, interval.high) == pytest.approx(bounds, abs=1e-6)
    assert of_share(0, 10).low == 0
    for num_errors, count in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match="is no share"):
            of_share(num_errors, count)


def test_coverage_of_seeds_and_shares_is_what_they_say():
    generator = np.random.default_rng(1)
    seeds = [over_seeds(generator.normal(5, 2, size=3)) for _ in range(2000)]
    shares = [of_share(int(n), 200) for n in generator.binomial(200, 0.3, size=2000)]
    for intervals, truth in ((seeds, 5), (shares, 0.3)):
        covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
        assert 0.93 <= covered <= 0.97


def test_coverage_of_a_paired_change_is_what_it_says_and_pairing_narrows_it():
    generator = np.random.default_rng(2)
    count, widths, num_covered = 200, [], 0
    labels = np.repeat([0, 1], count)
    for trial in range(200):
        # An image is hard or easy for both models alike: wrong before with .8 or .1, after with .7 or .1.
        hardness = generator.random(2 * count) < np.repeat([0.9, 0.1], count)
        draw = generator.random(2 * count)
        wrong = np.stack([draw < np.where(hardness, 0.8, 0.1), draw < np.where(hardness, 0.7, 0.1)])
        observed = [[row[labels == c].mean() for c in (0, 1)] for row in wrong]
        resampled = resampled_class_errors(labels, wrong, num_classes=2, seed=trial, num_resamples=400)
        interval = bootstrap(change_of_worst, observed=observed, resampled=resampled)
        apart = bootstrap(
            change_of_worst,
            observed=observed,
            resampled=np.concatenate(
                [
                    resampled[:, :1],
                    resampled_class_errors(labels, wrong, num_classes=2, seed=1000 + trial, num_resamples=400)[:, 1:],
                ],
                axis=1,
            ),
        )
        widths.append((interval.high - interval.low) / (apart.high - apart.low))
        num_covered += interval.low <= -0.09 <= interval.high  # 0.9 x (0.7 - 0.8)
    assert 0.90 <= num_covered / 200 <= 0.98
    assert np.median(widths) < 0.7


def test_resampling_agrees_with_drawing_image_by_image():
    generator = np.random.default_rng(3)
    labels = np.array([0] * 30 + [1] * 50 + [2] * 20)
    wrong = generator.random((2, 100)) < 0.4
    ours = resampled_class_errors(labels, wrong, num_classes=3, num_resamples=1500)
    plain = np.empty((1500, 2, 3))
    for b in range(1500):
        for c in range(3):
            drawn = generator.choice(np.flatnonzero(labels == c), size=(labels == c).sum())
            plain[b, :, c] = wrong[:, drawn].mean(1)
    np.testing.assert_allclose(ours.mean(0), plain.mean(0), atol=0.012)
    np.testing.assert_allclose(ours.std(0), plain.std(0), rtol=0.1)
    same = resampled_class_errors(labels, wrong, num_classes=3, num_resamples=1500)
    np.testing.assert_array_equal(ours, same)


def test_a_class_without_images_is_refused():
    with pytest.raises(ValueError, match="class 1 has no images"):
        resampled_class_errors([0, 0], [[True, False]], num_classes=2)


def test_rho_and_nsd_by_hand():
    # Accuracies .5 and .9 against .4 and 1.0: worst + 25 %, average .7 against .7.
    assert rho([0.5, 0.1], [0.6, 0.0]) == pytest.approx(0.25)
    # Accuracies .6 and .6 against .4 and 1.0: worst + 50 %, average .6 against .7.
    assert rho([0.4, 0.4], [0.6, 0.0]) == pytest.approx(0.5 - 0.1 / 0.7)
    assert rho([0.3, 0.2], [0.3, 0.2]) == 0
    with pytest.raises(ValueError, match="accuracy 0"):
        rho([0.5, 0.5], [1.0, 0.1])
    assert normalised_deviation([0.2, 0.6]) == pytest.approx(0.2 / 0.6)
    assert normalised_deviation([0.3, 0.3, 0.3]) == pytest.approx(0)
