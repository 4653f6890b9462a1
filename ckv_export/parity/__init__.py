"""Does every runtime compute what the model computes?"""
