"""Pascal VOC 2012: 20 classes; the id is the label value."""

from . import table

CLASSES = table(
    """
aeroplane, airplane, plane, jet
bicycle, bike
bird
boat, ship, sailboat
bottle
bus, coach
car
cat, kitten
chair
cow, cattle
dining table, diningtable, table
dog, puppy
horse
motorbike, motorcycle
person, people, man, men, woman, women, child, children, kid, boy, girl, baby
potted plant, pottedplant, houseplant
sheep, lamb
sofa, couch
train
television, tv, tv monitor, tvmonitor, monitor
"""
)
