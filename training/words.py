"""Words that the demo policy's tokenizer knows beside those of the task table.

Any string has tokens, down to letters and bytes; a word from this list has one or two, so that a later training on more
tasks can keep the vocabulary.
"""

from __future__ import annotations

ROBOT_WORDS = """
the a an and or of to in on into onto from at by with without for it its this that these those your my all each both
other another same one two three four five first second third last next then until while after before again now not no
only left right top bottom front back middle center side upper lower inner outer near far up down out off over under
above below behind between beside inside outside around across through along toward away forward backward here there
open close pick place put push pull press turn rotate twist slide lift raise grasp grab hold release drop move reach
touch stack unstack insert remove take give hand bring carry pour wipe sweep fold unfold flip shake stir cut fill
empty clean arrange sort align cover uncover hang plug unplug lock unlock switch start stop wait stay return go look
find point drawer window door faucet button handle lever dial knob cabinet cupboard shelf rack table desk counter box
bin basket bowl plate cup mug glass bottle can jar pot pan lid tray spoon fork knife spatula towel cloth sponge napkin
paper book pen marker block cube ball ring peg hole nut bolt screw wrench hammer tape rope cable socket light lamp
stove oven sink tap fridge microwave toaster kettle coffee machine water tea milk juice sugar salt bread apple banana
orange lemon carrot tomato potato corn egg eggplant pepper toy car duck robot arm gripper finger object target goal
position pose location corner edge surface wall floor puck stick soccer net basketball hoop thermos key card phone
remote charger bag red green blue yellow purple pink brown black white gray silver wooden metal plastic small large
big tiny long short tall round square flat heavy full closed opened please carefully slowly quickly gently straight
upright halfway completely
"""
