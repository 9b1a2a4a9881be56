import pytest
import torch

from ddpm_vlb.timestep_samplers import TIMESTEP_SAMPLERS, ImportanceSampler, StratifiedSampler, UniformSampler

T, BATCH = 50, 16
LOSSES = torch.linspace(5.0, 0.1, T, dtype=torch.float64) ** 2


def warm(sampler):
    for _ in range(10):
        sampler.update(torch.arange(T), LOSSES)
    return sampler


def samplers():
    return [UniformSampler(T), StratifiedSampler(T), ImportanceSampler(T), warm(ImportanceSampler(T))]


@pytest.mark.parametrize("index", range(4))
def test_weighted_losses_are_unbiased(index):
    sampler = samplers()[index]
    estimates = []
    for step in range(4000):
        timesteps, weights = sampler.sample(0, step, range(BATCH), BATCH)
        estimates.append((weights * T * LOSSES[timesteps]).mean())
    estimates = torch.stack(estimates)
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - LOSSES.sum()) < 4 * error


def test_each_sampler_has_less_variance_than_the_one_before():
    def variance(sampler):
        drawn = [sampler.sample(0, step, range(BATCH), BATCH) for step in range(400)]
        return torch.stack([(weights * LOSSES[timesteps]).mean() for timesteps, weights in drawn]).var()

    uniform, stratified, _, importance = map(variance, samplers())
    assert importance < 0.5 * stratified < 0.25 * uniform


def test_weights_average_to_one_in_expectation():
    probabilities = warm(ImportanceSampler(T)).probabilities
    timesteps, weights = warm(ImportanceSampler(T)).sample(0, 0, range(1000), 1000)
    assert torch.allclose(weights, 1 / (T * probabilities[timesteps]))
    assert (probabilities * (1 / (T * probabilities))).sum() == pytest.approx(1)


def test_stratified_batches_cover_all_timesteps():
    timesteps, _ = StratifiedSampler(T).sample(3, 7, range(T), T)
    assert sorted(timesteps.tolist()) == list(range(T))
    counts = torch.bincount(StratifiedSampler(T).sample(3, 8, range(2 * T + 10), 2 * T + 10)[0], minlength=T)
    assert counts.min() >= 2 and counts.max() <= 3


def test_importance_follows_the_root_mean_square_of_the_last_losses():
    sampler = ImportanceSampler(4, history_per_timestep=2, uniform_probability=0.1)
    for loss in (100.0, 3.0, 4.0):  # the first is forgotten
        sampler.update(torch.tensor([0, 1, 2]), torch.full((3,), loss))
    assert torch.equal(sampler.probabilities, torch.full((4,), 0.25, dtype=torch.float64))  # nothing known of timestep 3
    sampler.update(torch.tensor([3, 3]), torch.tensor([0.0, 0.0]))
    expected = 0.9 * torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0], dtype=torch.float64) + 0.1 / 4
    assert torch.allclose(sampler.probabilities, expected)
    assert 3 in sampler.sample(0, 0, range(400), 400)[0]  # never given up


@pytest.mark.parametrize("name", TIMESTEP_SAMPLERS)
def test_how_a_batch_is_cut_changes_nothing(name):
    sampler = warm(TIMESTEP_SAMPLERS[name](T))
    whole = sampler.sample(5, 9, range(12), 12)
    parts = [sampler.sample(5, 9, positions, 12) for positions in (range(0, 4), range(4, 12))]
    assert all(torch.equal(a, torch.cat(b)) for a, b in zip(whole, zip(*parts)))
    assert not torch.equal(whole[0], sampler.sample(5, 10, range(12), 12)[0])
    assert not torch.equal(whole[0], sampler.sample(6, 9, range(12), 12)[0])


def test_history_survives_a_checkpoint():
    sampler, other = warm(ImportanceSampler(T)), ImportanceSampler(T)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(other.probabilities, sampler.probabilities)
    other.update(torch.tensor([0]), torch.tensor([1e6]))
    assert not torch.equal(other.probabilities, sampler.probabilities)
    with pytest.raises(ValueError, match=r"`state` must hold losses of shape \(20, 10\), got \(50, 10\)"):
        ImportanceSampler(20).load_state_dict(sampler.state_dict())


def test_bad_arguments():
    with pytest.raises(ValueError, match="`num_timesteps` must be at least 1, got 0"):
        UniformSampler(0)
    with pytest.raises(ValueError, match="`history_per_timestep` must be at least 1, got 0"):
        ImportanceSampler(5, history_per_timestep=0)
    with pytest.raises(ValueError, match=r"`uniform_probability` must lie in \(0, 1\], got 0"):
        ImportanceSampler(5, uniform_probability=0)
