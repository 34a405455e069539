"""What `dmoerm report` can show: one kind of result a file. `table.KINDS` lists them."""
