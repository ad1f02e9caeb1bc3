from prime_xmc.interchange.guide import guide, program


def test_the_prompt_of_queries_is_put_before_them():
    assert "'query: ' + text" in program(32, "query: ")
    assert "+ text" not in program(32, "")
    compile(program(32, 'say "it"\n'), "program", "exec")


def test_what_the_ensemble_has_besides_is_said():
    settings = {"max_length": 32, "prompt": ""}
    weights = {"theta": 0.4, "W": 0.6, "neighbours": 0.5, "lexical": 1.0}
    text = guide([("a", "b")], vectors="mixture", weights=weights, difference=1e-7, settings=settings)
    assert "0.4 * prototype + 0.6 * classifier" in text
    assert "do not normalise them" in text
    assert "adds 0.5 * neighbours and 1 * lexical" in text
    plain = guide([("a", "b")], vectors="theta", weights={}, difference=1e-7, settings=settings)
    assert "ensemble" not in plain
    assert "by more than\n1.0e-07" in plain
