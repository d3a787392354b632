"""Reward functions that the launcher for OpenRLHF finds by their names."""

VALUES = {"one": 0.25, "two": 1.0, "three": 0.5, "four": -0.5, "five": 0.75, "six": float("nan")}
SEEN = []


def score(_prompts, candidates, _completions, *, labels, **_):
    """A number for each word, and for none of them of the label `nothing`."""
    SEEN.append(list(labels))
    return [
        [None if label == "nothing" else VALUES[text] for text in row]
        for row, label in zip(candidates, labels, strict=True)
    ]


def judge(prompts, texts):
    """Two is good, and so is a long prompt."""
    return [
        0.125 * len(prompt) + 2.0 * text.count("two") - 0.25 * text.count("one")
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def rule_at(step):
    """Another rule from the fifth step on."""
    return "shapley" if step < 5 else "leave_one_out"
