"""ADE20K, the 150 classes of the scene parsing benchmark; the id is the label value, and 0 is everything else."""

from . import table

CLASSES = table(
    """
wall
building, edifice
sky
floor, flooring
tree
ceiling
road, route, street
bed
windowpane, window
grass, lawn
cabinet
sidewalk, pavement
person, people, man, men, woman, women, child, children
earth, ground
door, double door
table
mountain, mount
plant
curtain, drape, drapery
chair
car, automobile
water
painting, picture
sofa, couch
shelf, shelves
house
sea, ocean
mirror
rug, carpet
field
armchair
seat
fence, fencing
desk
rock, stone
wardrobe, closet
lamp
bathtub, tub
railing, rail
cushion
base, pedestal
box
column, pillar
signboard, sign
chest of drawers, dresser, bureau
counter
sand
sink
skyscraper
fireplace, hearth
refrigerator, fridge
grandstand
path
stairs
runway
case, display case, showcase
pool table, billiard table
pillow
screen door
stairway, staircase
river
bridge
bookcase, bookshelf, bookshelves
blind
coffee table
toilet
flower
book
hill
bench
countertop
stove, cooker
palm, palm tree
kitchen island
computer
swivel chair, office chair
boat
bar
arcade machine
hovel, hut, shack
bus
towel
light, light source
truck, lorry
tower
chandelier
awning
streetlight, street lamp, street light
booth, stall, kiosk
television receiver, television, television set, tv
airplane, aeroplane, plane
dirt track
apparel, clothes, clothing
pole
land, soil
bannister, banister, balustrade, handrail
escalator
ottoman, pouf
bottle
buffet, sideboard
poster, placard
stage
van
ship
fountain
conveyer belt, conveyor belt
canopy
washer, washing machine
plaything, toy
swimming pool
stool
barrel
basket
waterfall
tent
bag
minibike, motorbike, motorcycle
cradle
oven
ball
food
step
tank, storage tank
trade name, brand name, brand
microwave, microwave oven
pot, flowerpot
animal
bicycle, bike
lake
dishwasher
screen, projection screen
blanket
sculpture
hood, exhaust hood
sconce
vase
traffic light
tray
ashcan, trash can, garbage can, dustbin, trash bin
fan
pier, dock, wharf
crt screen
plate
monitor
bulletin board, notice board
shower
radiator
glass, drinking glass
clock
flag
"""
)

LAST_VALUE = 150
