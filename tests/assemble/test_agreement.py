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
        (["sampling.batch_labels=all"], "first_epoch=1 adds labels to a batch which has all there are"),
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


@pytest.mark.parametrize("optimizer", ["renee", "elmo"])
@pytest.mark.parametrize("model", ["prime", "unidec", "ngame"])
def test_the_optimiser_of_one_vs_all_classifiers_is_not_for_prototypes(custom, model, optimizer):
    settings = [f"model={model}", f"optimizer={optimizer}"]
    with pytest.raises(ValueError, match=r"^optimizer\.classifier_lr=0\.\d+, .* give optimizer=adamw, or"):
        check_model(custom(*settings))
    check_model(custom(*settings, "resume=begun"))


@pytest.mark.parametrize("model", ["prime", "renee"])
def test_an_encoder_of_another_class_is_refused(custom, model):
    settings = [f"model={model}", "encoder._target_=my_encoders.Capped"]
    with pytest.raises(ValueError, match=r"^encoder\._target_=my_encoders\.Capped: a model folder holds the weights"):
        check_model(custom(*settings))
    check_model(custom(*settings, "ckpt_path=begun/before.ckpt"))


@pytest.mark.parametrize("setting", ["model.num_private=5", "model.num_private=all", "model.free_vector_start=text"])
def test_settings_of_free_vectors_that_there_are_none_of_are_refused(custom, setting):
    key, nothing = setting.partition("=")[0], "0" if "private" in setting else "random"
    with pytest.raises(ValueError, match=rf"^{setting} is about free_vector, .*: give {key}={nothing}"):
        check_model(custom(setting, "model.sources=[text,centroid]"))
    check_model(custom(setting))
    check_model(custom(setting, "model.sources=[text,centroid]", "resume=begun"))


def test_labels_are_not_shown_without_a_centroid_that_they_do_not_have(custom):
    settings = ["model.sources=[text,free_vector]", "sampling.without_centroid=0.1"]
    with pytest.raises(ValueError, match=r"^sampling\.without_centroid=0\.1 is about centroid, .* add centroid to"):
        check_model(custom(*settings))
    check_model(custom(settings[0]))  # sampling.leave_one_out is on by default
    check_model(custom(settings[1]))


def test_queries_that_move_centroids_only_are_not_encoded_without_centroids(custom):
    setting = "sampling.more_queries_per_label=2"
    with pytest.raises(ValueError, match=rf"^{setting} is about centroid, which is none of model.sources=\[text\]"):
        check_model(custom(setting, "model.sources=[text]"))
    check_model(custom(setting))


@pytest.mark.parametrize(
    ("settings", "untrained"),
    [
        ([], r"the Label Prototype Network \(model.combine=network\) and the free vectors"),
        (["model.combine=sum"], "leave the free vectors as"),
        (["model.sources=[text,centroid]"], r"the Label Prototype Network \(model.combine=network\) as"),
    ],
)
def test_a_loss_that_leaves_the_prototypes_as_they_are_is_refused(custom, settings, untrained):
    off = ["loss.prototype_weight=0", "loss.regulariser_weight=0"]
    with pytest.raises(ValueError, match=rf"^loss\.prototype_weight=0 and .*{untrained}.*or model\.sources=\[text\]"):
        check_model(custom(*settings, *off))
    for kept in (off[:1], off[1:], [*off, "model.sources=[text]"]):
        check_model(custom(*settings, *kept))


def test_positives_are_not_pushed_away_where_the_loss_leaves_none_out(custom):
    setting = "sampling.mask_positives=false"
    with pytest.raises(ValueError, match=rf"^{setting}: .*; give sampling\.loss_positives=drawn or any, or"):
        check_model(custom(setting))
    check_model(custom(setting, "sampling.loss_positives=any"))
    check_model(custom("model=dpr"))
