"""Simulated defects: each generator draws one kind into a good picture and says which pixels it changed."""

from core_model.data.defects.base import Canvas, Edit
from core_model.data.defects.recipes import RECIPES, Recipe, recipe_named, simulate

__all__ = ["RECIPES", "Canvas", "Edit", "Recipe", "recipe_named", "simulate"]
