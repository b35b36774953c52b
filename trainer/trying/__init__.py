"""A page on this machine where a person types and a trained model answers: `trainer try run=runs/quickstart`.

forms.py, texts.py  what is asked, and what is shown of the answer · server.py  who may ask · page.html, page.css, page.js  what is seen
"""
