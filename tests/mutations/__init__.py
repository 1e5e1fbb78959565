"""The guards of the protocol taken out one at a time: which rig notices?"""
