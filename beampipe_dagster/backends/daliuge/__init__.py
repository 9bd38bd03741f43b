"""DALiuGE: its translator, its island manager, its states, and the backend over its REST interface."""
