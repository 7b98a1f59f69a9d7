"""A page in the browser that shows a run and its generator: `fastgan view RUN`.

- `watching`: a run's folder, whose checkpoint, log and pictures change during training.
- `rendering`: images as HTML, and logged numbers as curves.
- `page`: the page, with Gradio. The only module that needs the extra "view".
- `access`: which requests are answered.
"""
