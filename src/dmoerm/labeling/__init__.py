"""Capability labels from a large language model: what is asked, of whom, where the answers are kept, and what they are worth.

The path of one label: `questions` picks two responses of a comparison and the points on which they are judged; `prompts` words the
question; `judge` sends it once; `store` keeps the raw reply; `replies` reads it; `labels` joins both presentation orders into a label;
`agreement` tells what the labels are worth. `run` drives all of it. Nothing here loads torch.
"""
