"""The thesis beside ours: its published numbers, its findings re-tested, and panels of both.

It is plugged into reports: importing `ddstudy.thesis.panels` adds its kinds of panels. Only what users call imports it.
"""
