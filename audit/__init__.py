"""The science of Basin: does a prompt recall a training image, an image of the model's own making, or neither?"""
