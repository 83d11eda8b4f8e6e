"""What is right with an installation and a launch, and what is not: what is behind `parallelcnn doctor`."""

from parallelcnn.doctor.examination import examine, some_images
from parallelcnn.doctor.finding import Finding

__all__ = ["Finding", "examine", "some_images"]
