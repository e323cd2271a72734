"""Folders of 2D images with masks, boxes and labels: lists, training, prediction and evaluation."""
