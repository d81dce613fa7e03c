"""Everything a person wrote: recipes, fleet files and the choices of a form, parsed and checked.

Call `load_recipe(path)` and `load_fleet(path)`. Nothing here imports Prefect, MLflow or torch.
"""
