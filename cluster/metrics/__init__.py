"""What a process tells of itself to who watches many: each metric is declared once, and read where
its value is kept already."""
