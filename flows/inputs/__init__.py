"""The files that people write, parsed and checked: recipes, fleet files, and the choices that forms offer.

Call `load_recipe(path)` and `load_fleet(path)`. Nothing here imports Prefect, MLflow or torch.
"""
