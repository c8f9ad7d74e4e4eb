"""What makes an observation, on a clock of the test's own; `test/bags/test_observations.py` has its two users."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import SPEC
from hypothesis import given
from hypothesis import strategies as st

from flashvla_ros.control.assembler import LATE_S, MAX_INSTRUCTION, Assembler
from flashvla_ros.core.errors import ObservationError
from flashvla_ros.core.settings import Settings

SETTINGS = Settings().with_values(
    {"action.names": SPEC.names, "action.kinds": tuple(map(str, SPEC.kinds)), "node.instruction": " push "}
)


def picture(level: int = 0) -> np.ndarray:
    return np.full((2, 2, 3), level, np.uint8)


def assembler(*cameras: str, **values: object) -> Assembler:
    settings = SETTINGS.with_values({name.replace("__", "."): value for name, value in values.items()})
    return Assembler(cameras or ("image",), lambda: settings)


def test_an_observation_is_made_of_the_newest_of_everything_when_the_first_camera_looks():
    ours = assembler("front", "wrist")
    assert ours.absent == ["front", "wrist"]
    assert ours.take_image("front", picture(1), 1.0, 100.0) is None
    assert ours.absent == ["wrist"]
    assert ours.take_image("wrist", picture(2), 1.1, 100.1) is None
    ours.take_joints(["gripper"], [0.5], 100.1)
    ours.take_pose({"x": 0.25}, 100.1)
    made = ours.take_image("front", picture(3), 1.2, 100.2)
    assert [(name, image[0, 0, 0]) for name, image in made.images.items()] == [("front", 3), ("wrist", 2)]
    assert (made.instruction, made.stamp_s) == ("push", 1.2)
    assert (made.joint_positions, made.pose) == ({"gripper": 0.5}, {"x": 0.25})


def test_without_an_instruction_there_is_no_observation():
    ours = assembler(node__instruction="")
    assert ours.take_image("image", picture(), 1.0, 1.0) is None
    assert ours.take_instruction(" pull ")
    assert not ours.take_instruction("pull")
    assert ours.take_image("image", picture(), 1.1, 1.1).instruction == "pull"


@pytest.mark.parametrize("text", ["", " \n", "x" * (MAX_INSTRUCTION + 1)])
def test_what_is_no_instruction_is_refused(text):
    ours = assembler()
    with pytest.raises(ObservationError, match="an instruction must"):
        ours.take_instruction(text)
    assert ours.instruction == "push"


def test_a_silent_camera_withholds_observations_until_it_is_back():
    ours = assembler("front", "wrist", control__image_timeout_s=0.5)
    ours.take_image("wrist", picture(), 1.0, 1.0)
    assert ours.take_image("front", picture(), 1.5, 1.5) is not None
    assert ours.take_image("front", picture(), 1.75, 1.75) is None
    assert ours.silent(1.75) == {"wrist": 0.75}
    ours.take_image("wrist", picture(), 1.8, 1.8)
    assert ours.take_image("front", picture(), 1.9, 1.9) is not None


def test_after_forgetting_every_camera_must_look_again_and_any_stamp_will_do():
    ours = assembler("front", "wrist")
    ours.take_image("wrist", picture(), 9.0, 1.0)
    ours.forget_images()
    assert ours.take_image("front", picture(), 8.9, 1.1) is None
    assert ours.image("wrist") is None
    assert ours.take_image("wrist", picture(), 8.9, 1.1) is not None


@pytest.mark.parametrize("back_s", [0.0, 0.1, LATE_S - 0.1])
def test_an_image_that_repeats_or_comes_late_is_refused_and_changes_nothing(back_s):
    ours = assembler()
    ours.take_image("image", picture(1), 50.0, 1.0)
    with pytest.raises(ObservationError, match=r"came after one stamped 50\.000 s"):
        ours.take_image("image", picture(2), 50.0 - back_s, 1.1)
    assert ours.image("image")[0, 0, 0] == 1
    assert ours.take_image("image", picture(3), 50.1, 1.2) is not None


def test_a_late_image_does_not_end_the_silence_of_its_camera():
    ours = assembler("front", "wrist", control__image_timeout_s=0.5)
    ours.take_image("wrist", picture(), 1.0, 1.0)
    with pytest.raises(ObservationError):
        ours.take_image("wrist", picture(), 1.0, 1.4)
    assert list(ours.silent(1.6)) == ["wrist"]


def test_after_a_silence_a_camera_goes_on_with_any_stamp():
    """As one whose clock was set back a little does, or a simulation that sends an unanswered image again."""
    ours = assembler(control__image_timeout_s=0.5)
    ours.take_image("image", picture(), 50.0, 1.0)
    with pytest.raises(ObservationError):
        ours.take_image("image", picture(), 49.9, 1.5)
    assert ours.take_image("image", picture(), 49.9, 1.6) is not None


def test_under_a_new_instruction_an_image_may_be_sent_again():
    ours = assembler("front", "wrist")
    ours.take_image("wrist", picture(), 1.0, 1.0)
    ours.take_image("front", picture(), 1.0, 1.0)
    ours.take_instruction("pull")
    ours.take_image("wrist", picture(), 1.0, 1.1)
    assert ours.take_image("front", picture(), 1.0, 1.1).instruction == "pull"
    with pytest.raises(ObservationError):
        ours.take_image("front", picture(), 1.0, 1.2)


def test_a_clock_that_was_set_back_and_images_without_stamps_are_taken():
    ours = assembler()
    assert ours.take_image("image", picture(), 50.0, 1.0) is not None
    assert ours.take_image("image", picture(), 50.0 - LATE_S, 1.1).stamp_s == 50.0 - LATE_S
    assert ours.take_image("image", picture(), 49.0, 1.2, stamped=False) is not None  # a clock that stands still


def test_ever_new_joints_take_no_memory_and_ones_that_are_not_finite_spare_the_others():
    ours = assembler()
    for index in range(50):
        ours.take_joints([f"joint_{index}_{n}" for n in range(100)], [float("nan")] * 100, 1.0)
    assert ours.positions(1.0) == {}
    with pytest.raises(ObservationError, match=r"the positions of \['gripper', 'x'\] are not finite"):
        ours.take_joints(["x", "wheel", "y", "gripper"], [float("inf"), float("nan"), 0.5, float("nan")], 1.0)
    assert ours.positions(1.0) == {"y": 0.5}
    assert ours._joints._measured.keys() == {"y"}


def test_joints_that_only_the_model_is_told_of_are_kept():
    ours = assembler(model__proprio=("x", "finger"), remote__state=("observation/arm: wheel lift",))
    ours.take_joints(["finger", "wheel", "lift", "door", "gripper"], [0.1, 0.2, 0.3, 0.4, 0.5], 1.0)
    made = ours.take_image("image", picture(), 1.0, 1.0)
    assert made.joint_positions == {"finger": 0.1, "wheel": 0.2, "lift": 0.3, "gripper": 0.5}


def test_lists_of_unequal_length_are_refused_as_a_whole():
    ours = assembler()
    with pytest.raises(ObservationError, match="joint_states: 2 names but 1 positions"):
        ours.take_joints(["x", "y"], [0.1], 1.0)
    assert ours.positions(1.0) == {}


def test_joints_that_nobody_reports_under_the_actions_names_are_named_with_those_that_are():
    """Drivers put a prefix before them, or /position behind; before the driver starts, configure cannot compare."""
    ours = assembler(action__names=("elbow", "wrist"), action__kinds=("absolute", "absolute"))
    with pytest.raises(ObservationError, match=r"\['elbow', 'wrist'\] are not among \['ur_elbow', 'ur_wrist'\]"):
        ours.take_joints(["ur_wrist", "ur_elbow"], [0.1, 0.2], 1.0)
    ours.take_joints(["elbow"], [0.3], 1.0)
    ours.take_joints(["left_wheel"], [0.4], 1.0)  # another driver's, as on every mobile robot
    assert ours.positions(1.0) == {"elbow": 0.3}


def test_a_joint_that_a_message_places_twice_is_refused_and_spares_the_others():
    ours = assembler()
    with pytest.raises(ObservationError, match=r"\['x'\] are there twice, in two places"):
        ours.take_joints(["x", "y", "x", "y"], [0.1, 0.2, 1.5, 0.2], 1.0)
    assert ours.positions(1.0) == {"y": 0.2}


def test_while_two_nodes_disagree_on_where_a_joint_is_there_is_no_observation():
    ours = assembler()
    ours.take_instruction("open the drawer")
    for index in range(10):
        ours.take_joints(["x"], [0.4 * (index % 2)], 1.0 + 0.02 * index)
    with pytest.raises(ObservationError, match=r"\['x'\] jump to and fro: two nodes report them"):
        ours.take_image("image", picture(), 1.2, 1.2)
    for index in range(10):
        ours.take_joints(["x"], [0.4], 1.2 + 0.1 * index)
    assert ours.take_image("image", picture(), 2.2, 2.2).joint_positions == {"x": 0.4}


def test_where_the_robot_was_counts_for_a_while():
    ours = assembler(control__state_timeout_s=1.0)
    ours.take_joints(["x"], [0.1], 1.0)
    ours.take_pose({"y": 0.2}, 1.5)
    assert ours.positions(2.0) == {"x": 0.1, "y": 0.2}
    assert ours.positions(2.25) == {"y": 0.2}


@given(
    st.lists(st.booleans(), min_size=3, max_size=12),
    st.integers(0, 12),
)
def test_images_of_one_stamp_are_one_observation_in_whatever_order_they_arrive(orders, lost):
    ours = assembler("front", "wrist")
    made = []
    for number, wrist_first in enumerate(orders, start=1):
        cameras = ("wrist", "front") if wrist_first else ("front", "wrist")
        made += [
            ours.take_image(camera, picture(number), float(number), number + 0.01)
            for camera in cameras
            if (camera, number) != ("wrist", lost)
        ]
    answered = {one.stamp_s: {name: int(image[0, 0, 0]) for name, image in one.images.items()} for one in made if one}
    assert len(answered) == sum(one is not None for one in made)  # nothing is answered twice
    together = {number: {"front": number, "wrist": number} for number in range(1, len(orders) + 1)}
    alike = {number: seen for number, seen in answered.items() if seen == together[number]}
    if not 0 < lost <= len(orders):
        assert alike == together
    else:  # the picture after a lost one may find an older one of the wrist in place of its own
        assert set(together) - {lost, lost + 1} <= set(alike)
        assert lost + 1 in answered or lost == len(orders)
        assert lost not in answered or lost == 1 or not alike


def test_cameras_that_are_not_triggered_together_never_wait_for_each_other():
    ours = assembler("front", "wrist")
    ours.take_image("wrist", picture(), 1.0, 1.0)
    for number in range(10):
        assert ours.take_image("front", picture(), 1.01 + 0.1 * number, 1.01 + 0.1 * number) is not None
        assert ours.take_image("wrist", picture(), 1.05 + 0.1 * number, 1.05 + 0.1 * number) is None
