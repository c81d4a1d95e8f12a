from moe_megatron.run.history import History
from moe_megatron.telemetry.values.records import EvalRecord, StepRecord


def step(number, loss):
    return StepRecord(
        step=number,
        loss=loss,
        learning_rate=1e-3,
        grad_norm=1.0,
        step_seconds=0.5,
        tokens=10,
        total_steps=3,
    )


def test_records_are_kept_in_order():
    history = History()
    for number, loss in ((1, 3.0), (2, None), (3, 1.0)):
        history.step(step(number, loss), None)
    assert [record.step for record in history.steps] == [1, 2, 3]
    assert history.losses == [3.0, None, 1.0]
    assert history.last_routing is None


def test_what_held_out_pairs_measure_has_columns():
    history = History()
    for number in (1, 2):
        history.step(step(number, 1.0), None)
    measures = {"reward_margin": 0.25}
    history.evaluation(EvalRecord(step=2, split="validation", loss=2.0, measures=measures))
    history.evaluation(EvalRecord(step=1, split="test", loss=2.0, measures={"reward_margin": 9.0}))
    assert history.columns()["validation_reward_margin"] == [None, 0.25]


def test_last_evaluation_is_the_newest():
    history = History()
    assert history.last_evaluation is None
    for number in (1, 2):
        history.evaluation(EvalRecord(step=number, split="validation", loss=2.0))
    assert history.last_evaluation is not None
    assert history.last_evaluation.step == 2
