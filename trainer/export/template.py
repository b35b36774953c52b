"""The text of a model card, below its metadata."""

TEMPLATE = """# {{ name }}

{{ "An adapter (`" + adapter + "`) of a" if adapter else "A" }} `{{ architecture }}` with {{ parameters }} parameters, {{ origin }} with \
Shardloom. Weights of step {{ step }}{{ ending }}.

## Use

```python
{{ loads }}
```

{% for graph in graphs %}
`{{ graph.file }}` is in ONNX: {{ graph.inputs | join(", ") }} → {{ graph.outputs | join(", ") }}; {{ graph.found }}.

{% endfor %}
## Model

| | |
|---|---|
| parameters | {{ parameters }} |
{% for key, value in model %}
| {{ key }} | {{ value | cell }} |
{% endfor %}

## Data

| source | what | {{ "share of the samples | " if data[0].share else "" }}trained on | held out |
|---|---|{{ "---|" if data[0].share else "" }}---|---|
{% for row in data %}
| {{ row.name | cell }} | {{ row.what | cell }} | {{ row.share + " | " if row.share else "" }}{{ row.train }} | {{ row.eval }} |
{% endfor %}

Fingerprint of the prepared data: `{{ fingerprint }}`. Tokenizer: {{ tokenizer }}.

## Recipe

| | |
|---|---|
{% for key, value in recipe + ran %}
| {{ key }} | {{ value | cell }} |
{% endfor %}

## Results

{% if results %}
At step {{ step }}. Loss is in nats a target. Figures are of held-out text; those with a name before them of one source or set alone.

| figure | value | beside it |
|---|---:|---|
{% for key, value, beside in results %}
| {{ key }} | {{ value }} | {{ beside }} |
{% endfor %}
{% else %}
This step was not evaluated.
{% endif %}

## Limits

- It has seen {{ tokens }} tokens of the text above and nothing else. What that text lacks, gets wrong or leans towards, so does the model.
- Nothing was measured but the figures above, where there are any: no other domain, no task, no safety.
{% if labels %}
- It knows its labels and no others: what fits none of them gets one all the same.
{% elif objective == "causal" and task != "instruct" %}
- It goes on with a text. It was not trained to follow instructions, and states falsehoods as fluently as facts.
{% elif objective in ("masked", "pretraining") or task == "denoising" %}
- It fills in what is hidden from it. For a task of your own it wants fine-tuning.
{% endif %}
- It was trained on rows of {{ sequence_length }} tokens, and longer texts are beyond what it has learned.

## The same again

```bash
{{ command }}
```

| | |
|---|---|
| digest of what was computed | `{{ digest }}` |
| date of this card | {{ date }} |
{% for name, version in versions.items() %}
| {{ name }} | {{ version }} |
{% endfor %}
"""
