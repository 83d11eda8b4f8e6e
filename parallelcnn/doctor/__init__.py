"""The checks of `parallelcnn doctor`: is the program installed and started correctly?"""

from parallelcnn.doctor.examination import examine, some_images
from parallelcnn.doctor.finding import Finding

__all__ = ["Finding", "examine", "some_images"]
