"""What a configuration leaves to the size of the data."""

import pytest
from omegaconf import OmegaConf

from prime_xmc.assemble import fit_to_size
from prime_xmc.training.sweeps import fingerprint

KEYS = ("dataset.num_validation", "model.num_free_vectors", "sampling.batch_size", "sampling.clusters.initial_size")


def numbers(config):
    return [OmegaConf.select(config, key) for key in KEYS]


class TestFit:
    def test_numbers_take_the_place_of_null(self, custom):
        config = custom()
        assert numbers(config) == [None] * 4
        fitted = fit_to_size(config, 1200, 30)
        assert numbers(fitted) == [120, 4, 64, 4]
        assert numbers(config) == [None] * 4, "the original stays"
        assert numbers(fit_to_size(fitted, 10**6, 10**6)) == [120, 4, 64, 4], "numbers stay"
        assert fitted.callbacks.clusters.initial_size == 4

    def test_prime_lite_is_another_configuration_before_the_data_are_known(self, custom):
        """A sweep would otherwise skip its job, and a report take its run for a repetition."""
        assert fingerprint(custom("model=prime")) != fingerprint(custom("model=prime_lite"))

    def test_prime_lite_takes_half_the_batch(self, custom):
        fitted = fit_to_size(custom("model=prime_lite"), 1200, 30)
        assert (fitted.dataset.batch_size, fitted.sampling.batch_size) == (64, 32)

    @pytest.mark.parametrize("dataset", ["debian18k", "go15k", "amazontitles131k"])
    def test_data_sets_with_numbers_keep_them(self, compose, dataset):
        config = compose(f"dataset={dataset}")
        assert fit_to_size(config, 200_000, 200_000) == config

    def test_a_number_in_another_group_goes_first_and_is_recorded_in_both(self, custom):
        config = custom("sampling.batch_size=32", "model.num_free_vectors=7")
        fitted = fit_to_size(config, 1200, 30)
        assert numbers(fitted) == [120, 7, 32, 2]
        assert (fitted.dataset.batch_size, fitted.dataset.num_free_vectors) == (32, 7)

    def test_null_in_another_group(self, custom):
        assert fit_to_size(custom("sampling.batch_size=null"), 1200, 30).sampling.batch_size == 64

    def test_synthetic_data(self, compose):
        fitted = fit_to_size(compose("dataset=synthetic"), 33_000, 20_000)
        assert numbers(fitted) == [1000, 4096, 512, 8]

    def test_the_key_that_was_given_is_named(self, custom):
        for group in ("dataset", "model"):
            with pytest.raises(ValueError, match=rf"^expected {group}\.num_free_vectors between 1 and the 30 labels"):
                fit_to_size(custom(f"{group}.num_free_vectors=4096"), 1200, 30)

    def test_one_message_names_all_that_do_not_fit(self, custom):
        config = custom("dataset.num_validation=1000", "dataset.num_free_vectors=4096")
        with pytest.raises(ValueError, match=r"2 settings do not fit custom, which has 120 .* 30 labels") as error:
            fit_to_size(config, 120, 30)
        assert "\n- expected dataset.num_validation below the 120 training queries, got 1000" in str(error.value)
        assert "\n- expected dataset.num_free_vectors between 1 and the 30 labels, got 4096" in str(error.value)
