"""A page in the browser to look at a training and at what its generator draws: `python -m fastgan.view RUN`.

- `watching`: a run's folder, whose checkpoint, log and pictures change while it is trained.
- `pictures`: images as HTML, crisp and large; numbers as what a plot takes.
- `page`: the page, with Gradio. The only module that needs the extra "view".
"""
