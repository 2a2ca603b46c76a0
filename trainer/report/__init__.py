"""Run directories come in, and one HTML page or a table goes out.

`runs` reads what each run recorded and compares them. `figures` chooses what is drawn, `charts` draws it as
inline SVG, `document` writes a picture as a file of its own, and `page` puts the table, the figures and the
starts of the runs together in the `style`. `planned` draws a run before it runs; `status` tells what runs do.
"""
