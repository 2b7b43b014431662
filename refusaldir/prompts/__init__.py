"""Prompt sets: their schema, loaders, presets, and rendering through a model's chat template.

Import from the modules: `schema` (Prompt, PromptSet), `load` (load_prompts, load_pair), `presets`
(public sets by name) and `render` (ChatRenderer). None of them imports torch or transformers.
"""
