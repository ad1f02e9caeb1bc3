"""Settings that do not fit each other."""

import pytest

from prime_xmc.assemble import check_model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sampling.mined.num_drawn=0"], "between 1 and the sampling.mined.top_k=200 labels"),
        (["sampling.mined.top_k=5", "sampling.mined.num_drawn=6"], "top_k=5 labels that are searched .*, got 6"),
        (["callbacks.mined=null"], "first_epoch=1 wants labels to be searched, and nothing searches them"),
        (["sampling.mined.alone=true", "sampling.mined.first_epoch=null"], "alone=true, and no labels are searched"),
        (["debug=overfit"], "overfit_batches=2 trains on the same .*: give sampling.mined.first_epoch=null"),
        (["sampling.mined.alone=true", "sampling.label_rows=true"], "give sampling.label_rows=false"),
        (
            ["sampling.mined.alone=true", "sampling.loss_positives=all", "sampling.memory_labels=9"],
            "sampling.memory_labels=9 adds labels .*: give sampling.memory_labels=0",
        ),
    ],
)
def test_settings_of_mined_labels_that_would_do_nothing(custom, settings, message):
    with pytest.raises(ValueError, match=message):
        check_model(custom("model=ance", *settings))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("+loss.temperature=0.3", r"^one-vs-all .* has no settings: leave out what sets loss"),
        ("sampling.memory_labels=5", r"^sampling\.memory_labels=5: one-vs-all .*; give sampling\.memory_labels=0"),
        ("sampling.more_queries_per_label=3", r"more_queries_per_label=3: .*; give sampling\.more_queries_per_label=0"),
        ("sampling.batch_labels=all", r"batch_labels=all: .*; give sampling\.batch_labels=drawn"),
    ],
)
def test_settings_of_prototypes_for_one_vs_all_classifiers_are_refused(custom, setting, said):
    with pytest.raises(ValueError, match=said):
        check_model(custom("model=renee", setting))


@pytest.mark.parametrize("model", ["renee", "elmo"])
def test_clusters_for_one_vs_all_classifiers_are_refused(custom, model):
    check_model(custom(f"model={model}"))
    with pytest.raises(ValueError, match=r"sampling\.clusters\.first_epoch=0: one-vs-all .* leave sampling=random"):
        check_model(custom(f"model={model}", "sampling.clusters.first_epoch=0"))


@pytest.mark.parametrize("setting", ["model.centroid_update=frozen", "model.momentum=0"])
def test_a_query_is_not_left_out_of_a_centroid_that_is_not_a_running_mean(custom, setting):
    with pytest.raises(ValueError, match=rf"^{setting} and sampling\.leave_one_out=0\.5: .* give sampling\.leave_one"):
        check_model(custom(setting))
    check_model(custom(setting, "sampling.leave_one_out=0"))
    check_model(custom(setting, "ckpt_path=begun/before.ckpt"))
    check_model(custom(setting, "model.sources=[text,free_vector]"))


def test_ance_to_the_letter(custom):
    check_model(custom("model=ance", "loss=two_way", "sampling.mined.alone=true"))
