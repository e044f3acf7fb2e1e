"""The simulated engine's vocabulary: 256 words of water and machines, each at most five UTF-8 bytes.

With its leading space a word is at most six bytes, so that each is exactly one piece of the tokenizer (`tokens.py`).
The order is part of what the engine says: a reordered list makes engines of two releases disagree about one stream.
"""

_TEXT = """
air angle anvil apron arch area axis axle bank barge bed belt berth blade block boat bolt bore brace brick brim
brine brook buoy bush cable cam canal canoe chain check chute clamp clay cloud coast coil cone core cove crane
crank crest crew cross crown curb curve cycle dam data datum deck delta depth dew disc dock dome drill drip drop
drum dune eddy edge elbow été eau ebb fan feed fen fern fill film fin fjord float flow flue fluid flush flux
foam fog ford forge frame frost fuel gate gear girth glass glen grade graph grate grid groin grove guide gulf
gully gust hail hatch head helm hinge hoist hoop hose hull ice inlet iron isle jet jetty joint keel key knot
lake land latch lead leak ledge level lever lift line link load lock loop marsh mast meter mill mist motor node
nut oar ocean oil oxbow pass peak pier pipe plank plant plug plumb point pole pond pool port power prow pulse
quay rack rail rain ramp rate reach reed reef reset rill ring rise river rivet rock roof rope rotor route sail
salt sand scale screw sea sedge shape sheet shelf shell ship shoal shore silt sink site skiff slab slate slide
slope slot snow soil span spill spin spout spray stage steel stem step stern stone store storm surge swamp swell
tank tap tarn tower trim tube valve vane vault vent wall wash water watt weir well wharf width wind wire yard
zone île bâti août pré gué ría
"""

WORDS: tuple[str, ...] = tuple(_TEXT.split())
