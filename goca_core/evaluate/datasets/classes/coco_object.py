"""COCO: the 80 object classes."""

from . import table

CLASSES = table(
    """
person, people, man, men, woman, women, child, children, kid, boy, girl, baby
bicycle, bike
car
motorcycle, motorbike
airplane, aeroplane, plane
bus
train
truck, lorry
boat, ship
traffic light
fire hydrant, hydrant
stop sign
parking meter
bench
bird
cat, kitten
dog, puppy
horse
sheep, lamb
cow, cattle
elephant
bear
zebra
giraffe
backpack, rucksack
umbrella, parasol
handbag, purse
tie, necktie
suitcase, luggage
frisbee
skis, ski
snowboard
sports ball, ball
kite
baseball bat
baseball glove
skateboard
surfboard
tennis racket, racket
bottle
wine glass, wineglass
cup, mug
fork
knife, knives
spoon
bowl
banana
apple
sandwich
orange
broccoli
carrot
hot dog
pizza
donut, doughnut
cake
chair
couch, sofa
potted plant, houseplant
bed
dining table, table
toilet
tv, television
laptop
mouse, computer mouse
remote, remote control
keyboard
cell phone, mobile phone, phone
microwave
oven
toaster
sink
refrigerator, fridge
book
clock
vase
scissors
teddy bear
hair drier, hair dryer
toothbrush
"""
)

NOT_USED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
CATEGORIES: tuple[int, ...] = tuple(number for number in range(1, 91) if number not in NOT_USED)
"""Category id of each class in the annotations, class 1 first. Ten of the ids up to 90 are not used."""
